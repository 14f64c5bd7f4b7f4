#!/bin/sh
# opusenc, given sound of five channels whose positions are left, right, center, rear left and rear right.
#
# Guess before the run: each channel is heard where it was, as it is with the six channels of 5.1.
# Seen: of 5.0, left and right stay, the center is heard at the rear right, the rear left in the center, and the rear right at
# the rear left, with bits enough for each. 5.1 is right.
# GStreamer 1.22.0 (packages of Debian 12), ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-base=1.22.0-3+deb12u7 libopus0=1.3.1-3 \
    libogg0=1.3.5-3
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0

cat >tones.py <<'PYTHON'
import array
import math
import subprocess
import sys

import imageio_ffmpeg

TONES = [300, 500, 700, 900, 1100, 1300]
command, name, n_channels = sys.argv[1], sys.argv[2], int(sys.argv[3])
# The bass channel of 5.1 is the fourth, and holds nothing above 120 Hz.
tones = TONES[:3] + [90] + TONES[3:5] if n_channels == 6 else TONES[:5]
if command == "make":
    samples = array.array("h")
    for moment in range(2 * 48000):
        samples.extend(int(6000 * math.sin(2 * math.pi * tone * moment / 48000)) for tone in tones)
    open(name, "wb").write(samples.tobytes())
else:
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", name, "-f", "s16le", "-ar", "48000", "-"]
    heard = array.array("h", subprocess.run(ffmpeg, capture_output=True, check=True).stdout)
    loudest = []
    for channel in range(n_channels):
        part = heard[48000 * n_channels + channel:72000 * n_channels:n_channels]

        def loudness(tone):
            angles = [2 * math.pi * tone * moment / 48000 for moment in range(len(part))]
            cosine = sum(sample * math.cos(angle) for sample, angle in zip(part, angles))
            sine = sum(sample * math.sin(angle) for sample, angle in zip(part, angles))
            return math.hypot(cosine, sine)

        loudest.append(str(max(tones, key=loudness)))
    print(" ".join(loudest))
PYTHON

libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
expect() {
    venv/bin/python tones.py make "$1.raw" "$1"
    LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        root/usr/bin/gst-launch-1.0 -q filesrc location="$1.raw" \
        ! rawaudioparse pcm-format=s16le sample-rate=48000 num-channels="$1" \
        ! "audio/x-raw,channels=$1,channel-mask=(bitmask)$2" ! opusenc bitrate=480000 ! oggmux ! filesink location="$1.opus"
    seen=$(venv/bin/python tones.py hear "$1.opus" "$1")
    echo "$1 channels: $seen"
    [ "$seen" = "$3" ] || { echo "expected $3"; exit 1; }
}
expect 6 0x3f "300 500 700 90 900 1100"
expect 5 0x37 "300 500 900 1100 700"
