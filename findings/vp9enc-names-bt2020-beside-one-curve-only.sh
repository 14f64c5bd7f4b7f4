#!/bin/sh
# The matrix of BT.2020 in VP9, as GStreamer's vp9enc writes it, beside the curve of HDR.
#
# Guess before the run: vp9enc writes the color space of the bitstream by the matrix of its caps, so that BT.2020 with the
# curve PQ ("bt2100-pq") and BT.2020 with its own curves ("bt2020", "bt2020-10") all say BT.2020 (5).
# Seen: only BT.2020 with the curve for 12 bits ("bt2020") says so. With PQ, HLG, and even the curve for 10 bits it writes
# "unknown" (0), and ffmpeg then reads an unknown matrix, although the WebM file around it says BT.2020.
# GStreamer 1.22.0 (packages of Debian 12), ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-base=1.22.0-3+deb12u7 \
    gstreamer1.0-plugins-good=1.22.0-5+deb12u3
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0
ffmpeg=$(venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')

libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
expect() {
    LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        root/usr/bin/gst-launch-1.0 -q videotestsrc num-buffers=2 \
        ! "video/x-raw,format=$1,width=320,height=240,framerate=25/1,colorimetry=$2" \
        ! vp9enc ! webmmux ! filesink location=out.webm
    # What the first frame's header says, and how ffmpeg calls the decoded picture.
    seen=$("$ffmpeg" -v verbose -i out.webm -c copy -bsf:v trace_headers -f null - 2>&1 \
        | sed -n 's/.* color_space  *[01]* = //p' | head -1)
    echo "$1 $2: color_space $seen"
    [ "$seen" = "$3" ] || { echo "expected $3"; exit 1; }
}
expect I420 bt709 2
expect I420_10LE bt709 2
expect I420_10LE bt2020 5
expect I420_10LE bt2020-10 0
expect I420_10LE bt2100-pq 0
expect I420_10LE bt2100-hlg 0
