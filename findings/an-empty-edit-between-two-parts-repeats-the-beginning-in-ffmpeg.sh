#!/bin/sh
# An mp4 whose edit list shows a second of film, then nothing for a second (an empty edit, ISO/IEC 14496-12, 8.6.6), then
# another second.
#
# Guess before the run: ffmpeg gives 25 frames from 0 s and 25 from 2 s, and a gap between them, as it does for an empty
# edit at the beginning.
# Seen: 75 frames without a gap. In the second that should be empty it shows the film from its beginning again. Without the
# empty edit, the same list gives 50 frames; with it at the beginning, 25 frames from 1 s.
# ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0
venv/bin/python - <<'PYTHON'
import struct
import subprocess

import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SCALE = 12800
EMPTY = -1


def run(*args):
    return subprocess.run([FFMPEG, "-v", "error", "-y", *args], check=True, capture_output=True, text=True).stdout


def boxes(data):
    at = 0
    while at < len(data):
        length = struct.unpack(">I", data[at:at + 4])[0]
        yield data[at + 4:at + 8], data[at + 8:at + length]
        at += length


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


def edited(data, edits):
    """The file with another edit list: for how many ms, and from which second of the track."""
    shown = struct.pack(">I", sum(length for length, _ in edits))
    parts = []
    for kind, content in boxes(data):
        if kind in (b"moov", b"trak"):
            content = edited(content, edits)
        elif kind == b"edts":
            entries = [struct.pack(">IiI", length, start if start == EMPTY else start * SCALE, 1 << 16) for length, start in edits]
            content = box(b"elst", bytes(4) + struct.pack(">I", len(edits)) + b"".join(entries))
        elif kind == b"mvhd":
            content = content[:16] + shown + content[20:]
        elif kind == b"tkhd":
            content = content[:20] + shown + content[24:]
        parts.append(box(kind, content))
    return b"".join(parts)


def frames(name):
    """Time in s and picture of each frame."""
    lines = run("-copyts", "-i", name, "-an", "-f", "framemd5", "-").splitlines()
    fields = [line.split(",") for line in lines if not line.startswith("#")]
    return [(int(line[2]), line[-1].strip()) for line in fields]


source = "testsrc2=size=64x48:rate=25:duration=6"
run("-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", "25", "-bf", "0", "-pix_fmt", "yuv420p",
    "-movie_timescale", "1000", "-video_track_timescale", str(SCALE), "-use_editlist", "1", "whole.mp4")
whole = open("whole.mp4", "rb").read()
assert b"elst" in whole
pictures = [picture for _, picture in frames("whole.mp4")]
seen = {}
begins = []
for name, edits in {
    "two parts": [(1000, 0), (1000, 3)],
    "nothing before": [(1000, EMPTY), (1000, 3)],
    "nothing between": [(1000, 0), (1000, EMPTY), (1000, 3)],
}.items():
    open("edited.mp4", "wb").write(edited(whole, edits))
    found = frames("edited.mp4")
    seen[name] = [picture for _, picture in found]
    begins.append(found[0][0])
    print(f"{name}: {len(found)} frames, the first at step {found[0][0]}")

assert begins == [0, 25, 0]
assert seen["two parts"] == pictures[:25] + pictures[75:100]
assert seen["nothing before"] == pictures[75:100]
assert seen["nothing between"] == pictures[:25] + pictures[:25] + pictures[75:100]
PYTHON
