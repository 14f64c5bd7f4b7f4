/* Prints what a Vision Transformer saw in each frame of a video, as the GStreamer element `vitscope` attached it.
 *
 *     cc examples/read_meta.c -o read_meta $(pkg-config --cflags --libs gstreamer-1.0)
 *     ./read_meta in.mp4
 *
 * Needs libgstreamer1.0-dev and the element (`make plugin`).
 */
#include <gst/gst.h>

#define LINE                                                                        \
  "filesrc name=file ! decodebin ! videoconvert ! "                                 \
  "vitscope mode=original show-hud=false attach-meta=true post-messages=true ! "    \
  "fakesink name=sink"

/* Reads the meta of a buffer; the fields are listed in src/element/meta.rs. */
static GstPadProbeReturn
on_buffer (GstPad *pad, GstPadProbeInfo *info, gpointer user_data)
{
  GstBuffer *buffer = GST_PAD_PROBE_INFO_BUFFER (info);
  GstCustomMeta *meta = gst_buffer_get_custom_meta (buffer, "GstVitscopeMeta");
  if (meta == NULL)
    return GST_PAD_PROBE_OK;

  GstStructure *found = gst_custom_meta_get_structure (meta);
  guint64 frame = 0;
  guint columns = 0, rows = 0;
  gfloat score = 0;
  GBytes *bytes = NULL;
  if (!gst_structure_get (found, "frame", G_TYPE_UINT64, &frame,
          "grid-width", G_TYPE_UINT, &columns, "grid-height", G_TYPE_UINT, &rows,
          "score", G_TYPE_FLOAT, &score, "mask", G_TYPE_BYTES, &bytes, NULL))
    return GST_PAD_PROBE_OK;

  gsize size = 0;
  const gfloat *mask = g_bytes_get_data (bytes, &size);
  guint hottest = 0;
  for (guint patch = 1; patch < size / sizeof (gfloat); patch++)
    if (mask[patch] > mask[hottest])
      hottest = patch;
  g_print ("frame %" G_GUINT64_FORMAT ": %s %.2f, hottest patch in row %u, column %u\n",
      frame, gst_structure_get_string (found, "label"), score,
      hottest / columns, hottest % columns);
  g_bytes_unref (bytes);
  return GST_PAD_PROBE_OK;
}

int
main (int argc, char *argv[])
{
  gst_init (&argc, &argv);
  if (argc != 2) {
    g_printerr ("usage: read_meta VIDEO\n");
    return 2;
  }
  GError *error = NULL;
  GstElement *pipeline = gst_parse_launch (LINE, &error);
  if (pipeline == NULL) {
    g_printerr ("%s\n", error->message);
    return 1;
  }
  GstElement *file = gst_bin_get_by_name (GST_BIN (pipeline), "file");
  g_object_set (file, "location", argv[1], NULL);
  gst_object_unref (file);
  GstElement *sink = gst_bin_get_by_name (GST_BIN (pipeline), "sink");
  GstPad *pad = gst_element_get_static_pad (sink, "sink");
  gst_pad_add_probe (pad, GST_PAD_PROBE_TYPE_BUFFER, on_buffer, NULL, NULL);
  gst_object_unref (pad);
  gst_object_unref (sink);

  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  GstBus *bus = gst_element_get_bus (pipeline);
  GstMessageType kinds = GST_MESSAGE_EOS | GST_MESSAGE_ERROR | GST_MESSAGE_ELEMENT;
  guint messages = 0;
  int status = -1;
  while (status < 0) {
    GstMessage *message = gst_bus_timed_pop_filtered (bus, GST_CLOCK_TIME_NONE, kinds);
    if (GST_MESSAGE_TYPE (message) == GST_MESSAGE_ELEMENT) {
      if (gst_message_has_name (message, "vitscope"))
        messages++;
    } else if (GST_MESSAGE_TYPE (message) == GST_MESSAGE_ERROR) {
      gst_message_parse_error (message, &error, NULL);
      g_printerr ("%s\n", error->message);
      g_clear_error (&error);
      status = 1;
    } else {
      g_print ("%u messages\n", messages);
      status = 0;
    }
    gst_message_unref (message);
  }
  gst_object_unref (bus);
  gst_element_set_state (pipeline, GST_STATE_NULL);
  gst_object_unref (pipeline);
  return status;
}
