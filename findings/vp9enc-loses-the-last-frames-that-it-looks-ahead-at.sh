#!/bin/sh
# The last frames of a film that GStreamer's vp9enc encodes at high constant quality.
#
# Guess before the run: 75 frames go in and 75 come out, whatever the quality, as at the end of a stream an encoder gives
# what it holds back (it looks ahead up to 25 frames).
# Seen: about ten of the last frames are missing at cq-level 4, without an error. With lag-in-frames=0 all come out.
# GStreamer 1.22.0 (packages of Debian 12), libvpx 1.12.0, ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-base=1.22.0-3+deb12u7 \
    gstreamer1.0-plugins-good=1.22.0-5+deb12u3 gstreamer1.0-plugins-bad=1.22.0-4+deb12u8 \
    libgstreamer-plugins-bad1.0-0=1.22.0-4+deb12u8 libvpx7=1.12.0-1+deb12u5
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0
ffmpeg=$(venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')
"$ffmpeg" -v error -f lavfi -i testsrc2=size=160x120:rate=25:duration=3 -pix_fmt yuv420p -f rawvideo in.yuv

libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
count() {
    LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        root/usr/bin/gst-launch-1.0 -q filesrc location=in.yuv \
        ! rawvideoparse width=160 height=120 format=i420 framerate=25/1 \
        ! vp9enc end-usage=cq cq-level=4 min-quantizer=4 target-bitrate=1000000 cpu-used=4 "$@" \
        ! webmmux ! filesink location=out.webm
    "$ffmpeg" -v error -i out.webm -f framemd5 - | grep -vc '^#'
}
ahead=$(count)
at_once=$(count lag-in-frames=0)
echo "75 frames in: $ahead out, with lag-in-frames=0 $at_once"
[ "$at_once" -eq 75 ]
[ "$ahead" -lt 75 ]
