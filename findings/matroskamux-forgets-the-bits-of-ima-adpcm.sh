#!/bin/sh
# matroskamux, given IMA ADPCM.
#
# Guess before the run: it writes a WAVEFORMATEX with 4 bits per sample and the bytes per second, as ffmpeg does.
# Seen: bits per sample and bytes per second are 0, although the packets are those of ffmpeg. ffmpeg's own decoder library
# finds no codec parameters in such a header.
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

"$ffmpeg" -v error -f lavfi -i sine=440:r=48000:d=1 -ac 2 -c:a adpcm_ima_wav ffmpeg.mkv
LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
    GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
    root/usr/bin/gst-launch-1.0 -q filesrc location=ffmpeg.mkv ! matroskademux ! matroskamux ! filesink location=gst.mkv

# The header of the codec begins with number 0x11 and two channels at 48,000 Hz.
header() {
    python3 - "$1" <<'PYTHON'
import struct, sys
data = open(sys.argv[1], "rb").read()
at = data.index(struct.pack("<HHI", 0x11, 2, 48000))
print("%s: %d bytes per second, %d bits per sample" % (sys.argv[1], *struct.unpack_from("<I2xH", data, at + 8)))
PYTHON
}
header ffmpeg.mkv
header gst.mkv
[ "$(header ffmpeg.mkv | cut -d, -f2)" = " 4 bits per sample" ]
[ "$(header gst.mkv)" = "gst.mkv: 0 bytes per second, 0 bits per sample" ]
