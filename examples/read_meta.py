#!/usr/bin/env python3
"""Prints what a Vision Transformer saw in each frame of a video, as the GStreamer element `vitscope` attached it.

    python3 examples/read_meta.py in.mp4

Needs python3-gi, gir1.2-gstreamer-1.0 and the element (`make plugin`).
"""

import struct
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

LINE = (
    "filesrc name=file ! decodebin ! videoconvert ! "
    "vitscope mode=original show-hud=false attach-meta=true post-messages=true ! fakesink name=sink"
)


def on_buffer(_pad, info):
    """Reads the meta of a buffer; the fields are listed in src/element/meta.rs."""
    meta = info.get_buffer().get_custom_meta("GstVitscopeMeta")
    if meta is None:
        return Gst.PadProbeReturn.OK
    found = meta.get_structure()
    columns, rows = found.get_value("grid-width"), found.get_value("grid-height")
    mask = struct.unpack(f"<{columns * rows}f", found.get_value("mask").get_data())
    hottest = max(range(len(mask)), key=mask.__getitem__)
    print(
        f"frame {found.get_value('frame')}: {found.get_value('label')} {found.get_value('score'):.2f}, "
        f"hottest patch in row {hottest // columns}, column {hottest % columns}"
    )
    return Gst.PadProbeReturn.OK


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Gst.init(None)
    pipeline = Gst.parse_launch(LINE)
    pipeline.get_by_name("file").set_property("location", sys.argv[1])
    pad = pipeline.get_by_name("sink").get_static_pad("sink")
    pad.add_probe(Gst.PadProbeType.BUFFER, on_buffer)
    pipeline.set_state(Gst.State.PLAYING)
    messages = 0
    kinds = Gst.MessageType.EOS | Gst.MessageType.ERROR | Gst.MessageType.ELEMENT
    while True:
        message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, kinds)
        if message.type == Gst.MessageType.ELEMENT:
            messages += message.get_structure().get_name() == "vitscope"
            continue
        pipeline.set_state(Gst.State.NULL)
        if message.type == Gst.MessageType.ERROR:
            sys.exit(message.parse_error()[0].message)
        print(f"{messages} messages")
        return


if __name__ == "__main__":
    main()
