#!/bin/sh
# qtmux, given uncompressed sound of 96,000 Hz.
#
# Guess before the run: a sound description of version 2, whose sample rate is a float of 64 bits.
# Seen: version 0 with a rate of 30,464 Hz (96,000 - 65,536) and no warning. The time scale of
# the track is right.
# GStreamer 1.22.0 (packages of Debian 12).
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-base=1.22.0-3+deb12u7 \
    gstreamer1.0-plugins-good=1.22.0-5+deb12u4
for package in *.deb; do dpkg-deb -x "$package" root; done
libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
    GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
    root/usr/bin/gst-launch-1.0 -q audiotestsrc num-buffers=50 ! audio/x-raw,format=S16LE,rate=96000,channels=2 ! \
    qtmux ! filesink location=out.mov

python3 - <<'PYTHON'
import struct
data = open("out.mov", "rb").read()
at = data.index(b"stsd") + 12
version = struct.unpack_from(">H", data, at + 16)[0]
rate = struct.unpack_from(">I", data, at + 32)[0] / 65536
print("version %d, %d Hz" % (version, rate))
raise SystemExit((version, rate) != (0, 30464))
PYTHON
