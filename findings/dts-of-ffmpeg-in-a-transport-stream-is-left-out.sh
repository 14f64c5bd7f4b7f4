#!/bin/sh
# DTS sound in an MPEG transport stream, as ffmpeg writes it: stream type 0x82, which ffmpeg and Blu-ray discs use for it.
#
# Guess before the run: tsdemux shows a stream of audio/x-dts beside the picture, and of the same in an .m2ts, whose
# program is registered as Blu-ray's ("HDMV").
# Seen: no stream but the picture in either, and no error, so players are silent. AC-3 in the same file is shown. With the
# stream type rewritten to 0x8a, which tsdemux knows, it is audio/x-dts.
# GStreamer 1.22.0 (packages of Debian 12), ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-bad=1.22.0-4+deb12u8 \
    libgstreamer-plugins-bad1.0-0=1.22.0-4+deb12u8
for package in *.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0

venv/bin/python - <<'PYTHON'
import subprocess

import imageio_ffmpeg

picture = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1"]
sound = ["-f", "lavfi", "-i", "sine=duration=1:sample_rate=48000"]


def make(name, codec, *more):
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *picture, *sound, "-c:v", "mpeg2video"]
    subprocess.run([*ffmpeg, "-c:a", codec, "-strict", "-2", *more, "-f", "mpegts", name], check=True)


def crc32(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return crc.to_bytes(4, "big")


make("ac3.ts", "ac3")
make("dts.ts", "dca")
make("dts.m2ts", "dca", "-mpegts_m2ts_mode", "1")
stream = bytearray(open("dts.ts", "rb").read())
for start in range(0, len(stream), 188):
    # ffmpeg sends the list of tracks on stream 0x1000, whole in one packet.
    if stream[start + 1:start + 3] == b"\x50\x00":
        table = start + 5
        end = table + 3 + (stream[table + 1] << 8 & 0xF00 | stream[table + 2])
        at = table + 12
        while at < end - 4:
            if stream[at] == 0x82:
                stream[at] = 0x8A
            at += 5 + (stream[at + 3] << 8 & 0xF00 | stream[at + 4])
        stream[end - 4:end] = crc32(stream[table:end - 4])
open("rewritten.ts", "wb").write(stream)
PYTHON

libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
# A branch that no stream is for waits for ever.
expect() {
    seen=$(LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
        GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" \
        timeout 10 root/usr/bin/gst-launch-1.0 -v filesrc location="$1" ! tsdemux name=d d. ! fakesink async=false \
        d. ! fakesink async=false 2>&1 | grep -o 'caps = [a-z0-9]*/[a-z0-9-]*' | sort -u | tr '\n' ' ')
    echo "$1: $seen"
    [ "$seen" = "$2" ] || { echo "expected $2"; exit 1; }
}
expect ac3.ts "caps = audio/x-ac3 caps = video/mpeg "
expect rewritten.ts "caps = audio/x-dts caps = video/mpeg "
expect dts.ts "caps = video/mpeg "
expect dts.m2ts "caps = video/mpeg "
