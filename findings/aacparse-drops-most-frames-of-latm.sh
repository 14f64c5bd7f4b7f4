#!/bin/sh
# aacparse, given AAC-LC in LATM as ffmpeg writes it: frames of LOAS, of which every twentieth or so carries the configuration.
#
# Guess before the run: all frames come out, because the first one has the configuration.
# Seen: of 66,223 bytes, 174 frames of two tones for 4 s, 30,656 come out. What lies between the first configuration and
# the second is dropped ("No previous config to use"), and more behind it. The same sound in ADTS comes out whole.
# GStreamer 1.22.0 (packages of Debian 12), ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-good=1.22.0-5+deb12u4
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0
ffmpeg=$(venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')

libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
parsed() {
    "$ffmpeg" -v error -f lavfi -i 'aevalsrc=sin(2764*t)|sin(5529*t):d=4' -c:a aac -f "$1" "in.$1"
    LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        root/usr/bin/gst-launch-1.0 -q filesrc location="in.$1" ! "audio/mpeg,mpegversion=4,stream-format=$2" ! aacparse \
        ! filesink location="out.$1"
    echo "$1: $(stat -c %s "in.$1") bytes in, $(stat -c %s "out.$1") out"
}
parsed adts adts
parsed latm loas
[ "$(stat -c %s in.adts)" = "$(stat -c %s out.adts)" ]
[ "$(stat -c %s out.latm)" -lt $(($(stat -c %s in.latm) * 3 / 4)) ]
