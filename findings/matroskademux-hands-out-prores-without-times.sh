#!/bin/sh
# matroskademux, given ProRes of a variable frame rate.
#
# Guess before the run: each buffer has the time of its block, as with other codecs.
# Seen: no buffer of ProRes has a time, neither of presentation nor of decoding, though the blocks do: a decoder can only
# number the frames by the frame rate, so the gap of two seconds vanishes, and a picture that begins late begins at the
# segment. Motion JPEG from the same pictures has all times, and so has ProRes from mov.
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
timed() {
    "$ffmpeg" -v error -f lavfi -i testsrc2=size=128x96:rate=25:duration=4 -vf "select='not(between(n,20,70))'" \
        -fps_mode vfr -c:v "$2" "in.$1"
    LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        root/usr/bin/gst-launch-1.0 -v filesrc location="in.$1" ! "$3" ! identity silent=false ! fakesink >log
    echo "$2 in $1: $(grep -c 'chain ' log) buffers, $(grep 'chain ' log | grep -c 'pts: 0:') with a time"
    grep 'chain ' log | grep -c 'pts: 0:' >count || true
}
timed mkv mjpeg matroskademux
[ "$(cat count)" = 49 ]
rm in.mkv
timed mov prores_ks qtdemux
[ "$(cat count)" = 49 ]
timed mkv prores_ks matroskademux
[ "$(cat count)" = 0 ]
