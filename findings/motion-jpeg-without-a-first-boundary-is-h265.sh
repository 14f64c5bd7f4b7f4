#!/bin/sh
# A multipart stream of JPEG pictures that begins with the headers of its first part, with no boundary line before them, as
# some network cameras send it, is H.265 to GStreamer's type finder: JPEG files have start codes in their own headers.
#
# Guess before the run: "Could not determine type of stream", an error that a player would tell at once.
# Seen: video/x-h265, and so a player hands the stream to an H.265 parser, which finds no frame and waits. Pictures of
# Pillow behind the same headers get the error; those of ffmpeg do not.
# GStreamer 1.22.0 (packages of Debian 12), ffmpeg of imageio-ffmpeg 0.6.0, Pillow 11.3.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    gstreamer1.0-plugins-base=1.22.0-3+deb12u7 libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0 pillow==11.3.0

venv/bin/python - <<'PYTHON'
import io
import subprocess

import imageio_ffmpeg
from PIL import Image

ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=64x48", "-frames:v", "1"]
by_ffmpeg = subprocess.run([*ffmpeg, "-f", "mjpeg", "-"], capture_output=True, check=True).stdout
by_pillow = io.BytesIO()
Image.radial_gradient("L").convert("RGB").save(by_pillow, "JPEG")
for name, jpeg in (("ffmpeg", by_ffmpeg), ("pillow", by_pillow.getvalue())):
    headers = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
    part = headers + jpeg + b"\r\n--frame\r\n"
    open(f"{name}.without", "wb").write(10 * part)
    open(f"{name}.with", "wb").write(b"--frame\r\n" + 10 * part)
PYTHON

libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
found() {
    LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        root/usr/bin/gst-typefind-1.0 "$1" 2>&1 | tail -n 1
}
expect() {
    seen=$(found "$1")
    echo "$seen"
    [ "$seen" = "$1 - $2" ] || { echo "expected $2"; exit 1; }
}
expect ffmpeg.with "multipart/x-mixed-replace"
expect ffmpeg.without "video/x-h265, stream-format=(string)byte-stream"
expect pillow.with "multipart/x-mixed-replace"
expect pillow.without "FAILED: Could not determine type of stream."
