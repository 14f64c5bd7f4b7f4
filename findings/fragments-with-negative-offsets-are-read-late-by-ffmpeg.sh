#!/bin/sh
# A film of 25 frames per second with two B-frames in a row, written four times by ffmpeg: as a plain mp4, with negative
# composition offsets (ISO/IEC 14496-12, 8.6.1.3 and 8.8.8: version 1 of `ctts` and `trun`), and as fragments with such
# offsets, behind a header without samples and behind one with them. A sample is shown its offset after it is decoded, so
# all four say that the first picture is shown at 0 ms, and the sound as well.
#
# Guess before the run: ffmpeg reads its own files back with pictures at 0, 40, 80 ms ... in all four.
# Seen: so in the plain file and in that with negative offsets. Of the fragments behind an empty header each picture comes
# 40 ms late, and the sound does not. Behind a header with samples the first second is right, the rest 40 ms late: there is
# a hole in the film where the fragments begin.
# ffmpeg of imageio-ffmpeg 0.6.0.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv venv
venv/bin/pip install -q imageio-ffmpeg==0.6.0
venv/bin/python - <<'PYTHON'
import subprocess

import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
FRAME_MS = 40


def run(*args):
    return subprocess.run([FFMPEG, "-v", "error", "-y", *args], check=True, capture_output=True, text=True).stdout


def times_ms(name, stream):
    lines = run("-copyts", "-i", name, "-map", f"0:{stream}", "-fps_mode", "passthrough", "-f", "framemd5", "-").splitlines()
    base = next(line for line in lines if line.startswith("#tb")).split(":")[1].split("/")
    fields = [line.split(",") for line in lines if not line.startswith("#")]
    return [round(int(line[2]) * 1000 * int(base[0]) / int(base[1])) for line in fields]


run("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=4", "-f", "lavfi", "-i", "sine=sample_rate=48000:duration=4",
    "-c:v", "libx264", "-g", "25", "-bf", "2", "-x264-params", "b-adapt=0", "-pix_fmt", "yuv420p", "-c:a", "pcm_s16le", "film.mov")
kinds = {
    "plain": [],
    "offsets": ["-movflags", "negative_cts_offsets"],
    "fragments": ["-movflags", "negative_cts_offsets+frag_keyframe+empty_moov+default_base_moof"],
    "header and fragments": ["-movflags", "negative_cts_offsets+frag_keyframe"],
}
late = {}
for name, flags in kinds.items():
    run("-i", "film.mov", "-c", "copy", *flags, "copy.mov")
    pictures = times_ms("copy.mov", "v")
    assert len(pictures) == 100
    late[name] = [time - FRAME_MS * idx for idx, time in enumerate(pictures)]
    print(f"{name}: pictures are late by {sorted(set(late[name]))} ms, the sound by {times_ms('copy.mov', 'a')[0]} ms")
    assert times_ms("copy.mov", "a")[0] == 0

assert late["plain"] == late["offsets"] == [0] * 100
assert late["fragments"] == [FRAME_MS] * 100
assert late["header and fragments"] == [0] * 25 + [FRAME_MS] * 75
PYTHON
