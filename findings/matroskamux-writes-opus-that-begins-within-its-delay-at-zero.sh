#!/bin/sh
# Opus in Matroska whose first block comes at 11 ms, copied by GStreamer: matroskademux to matroskamux. Blocks of Opus count
# with the codec's delay, 6.5 ms here (RFC 9559, 5.1.4.1.25), so what this block holds is heard from 4.5 ms on.
#
# Guess before the run: the copy has the blocks of the original, at 11, 31, 51 ms.
# Seen: 0, 31, 51. Where a packet is heard less than the delay after zero, the muxer writes 0: the first one is heard 11 ms
# early, and every later one is right.
# GStreamer 1.22.0 (packages of Debian 12), ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0
"$(venv/bin/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')" -v error \
    -f lavfi -i testsrc2=size=64x48:rate=25:duration=1 -itsoffset 0.0105 -f lavfi -i sine=sample_rate=48000:duration=1 \
    -c:v libvpx -c:a libopus -avoid_negative_ts disabled in.mkv

apt-get download -qq gstreamer1.0-tools=1.22.0-2+deb12u1 libgstreamer1.0-0=1.22.0-2+deb12u1 \
    libgstreamer-plugins-base1.0-0=1.22.0-3+deb12u7 gstreamer1.0-plugins-base=1.22.0-3+deb12u7 \
    gstreamer1.0-plugins-good=1.22.0-5+deb12u4 gstreamer1.0-plugins-bad=1.22.0-4+deb12u8 \
    libgstreamer-plugins-bad1.0-0=1.22.0-4+deb12u8
for package in *.deb; do dpkg-deb -x "$package" root; done
libraries=$(dirname "$(find root -name 'libgstreamer-1.0.so.0')")
LD_LIBRARY_PATH="$libraries" GST_PLUGIN_SYSTEM_PATH_1_0="$libraries/gstreamer-1.0" GST_REGISTRY_1_0=registry \
    GST_PLUGIN_SCANNER_1_0="$(find root -name gst-plugin-scanner)" timeout 60 \
    root/usr/bin/gst-launch-1.0 -q filesrc location=in.mkv ! matroskademux name=demux \
    demux.audio_0 ! queue ! opusparse ! matroskamux ! filesink location=out.mkv

python3 - <<'PYTHON'
INSIDE = {0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xA0}
TRACK_NUMBER, TRACK_TYPE, CLUSTER_TIME, BLOCK, SIMPLE_BLOCK = 0xD7, 0x83, 0xE7, 0xA1, 0xA3
SOUND = 2


def sound_blocks(name):
    data = open(name, "rb").read()
    found, state = [], {"cluster": 0, "track": 0, "sound": None}

    def length_of(at, marked):
        size = 9 - data[at].bit_length()
        value = int.from_bytes(data[at:at + size], "big")
        return (value if marked else value & ((1 << 7 * size) - 1)), size

    def read(at, end):
        while at < end:
            element, size = length_of(at, True)
            length, more = length_of(at + size, False)
            if length == (1 << 7 * more) - 1:
                length = end - at
            at += size + more
            content = data[at:at + length]
            if element in INSIDE:
                read(at, min(at + length, end))
            elif element == TRACK_NUMBER:
                state["track"] = content[0]
            elif element == TRACK_TYPE and content[0] == SOUND:
                state["sound"] = state["track"]
            elif element == CLUSTER_TIME:
                state["cluster"] = int.from_bytes(content, "big")
            elif element in (BLOCK, SIMPLE_BLOCK) and content[0] & 0x7F == state["sound"]:
                found.append(state["cluster"] + int.from_bytes(content[1:3], "big", signed=True))
            at += length

    read(0, len(data))
    return found[:3]


before, after = sound_blocks("in.mkv"), sound_blocks("out.mkv")
print(f"blocks of sound in ms: {before} before, {after} after")
assert before == [11, 31, 51]
assert after == [0, 31, 51]
PYTHON
