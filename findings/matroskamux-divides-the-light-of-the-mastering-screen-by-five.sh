#!/bin/sh
# The light of the screen that an HDR film was made on, as GStreamer's matroskamux writes it into a WebM file.
#
# Guess before the run: caps that say 1000 and 0.005 cd/m² (in steps of 0.0001, as CTA-861.3 counts) become a LuminanceMax
# of 1000 and a LuminanceMin of 0.005 (RFC 9559, sections 5.1.4.1.28.39 and .40).
# Seen: 200 and 0.001. Both are divided by the 50000 steps of the primaries' coordinates and not by the 10000 of light.
# The coordinates are right.
# GStreamer 1.22.0 (packages of Debian 12).
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-base=1.22.0-3+deb12u7 \
    gstreamer1.0-plugins-good=1.22.0-5+deb12u3
for package in *.deb; do dpkg-deb -x "$package" root; done
libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
    GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
    root/usr/bin/gst-launch-1.0 -q videotestsrc num-buffers=2 \
    ! "video/x-raw,format=I420_10LE,width=320,height=240,framerate=25/1,colorimetry=bt2100-pq,mastering-display-info=(string)34000:16000:13250:34500:7500:3000:15635:16450:10000000:50" \
    ! vp9enc ! webmmux ! filesink location=out.webm
python3 - <<'PYTHON'
import struct

data = open("out.webm", "rb").read()


def number(element):
    at = data.index(element)
    length = data[at + 2] & 0x7F
    return struct.unpack(">d" if length == 8 else ">f", data[at + 3:at + 3 + length])[0]


red, most, least = number(b"\x55\xd1"), number(b"\x55\xd9"), number(b"\x55\xda")
print(f"red's x {red}, LuminanceMax {most}, LuminanceMin {least}")
assert abs(red - 0.68) < 1e-9
assert (most, least) == (200.0, 0.001)
PYTHON
