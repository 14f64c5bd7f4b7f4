#!/bin/sh
# libavcodec, given H.264 with intra refresh from x264, from each of its recovery points on.
#
# Guess before the run: the frames that it shows, from the end of the refresh on, equal those of the whole stream.
# Seen: they do from frames 40, 80 and 120 on, 18 frames after each recovery point. From frame 160 on, whose frame_num
# is zero (5 bits), the 22 frames up to the next refresh are broken, and none of them is marked as corrupt: a stream
# that begins so has no gap in its frame numbers, and nothing stands in for the references that are missing.
# libavcodec 61.19.100 (PyAV 14.0.0), x264 of the same package. The same in libavcodec 59 behind GStreamer 1.22.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv venv
venv/bin/pip install -q av==14.0.0 numpy==2.1.3
venv/bin/python - <<'PYTHON'
from fractions import Fraction

import av
import numpy as np


def picture(number):
    y, x = np.mgrid[0:240, 0:320]
    planes = [x * 2 + number * 5, y * 3 + number * 7, x + y + number * 3]
    return av.VideoFrame.from_ndarray(np.stack(planes, -1).astype(np.uint8), format="rgb24")


encoder = av.CodecContext.create("libx264", "w")
encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuv420p"
encoder.time_base = Fraction(1, 25)
encoder.options = {
    "preset": "veryfast",
    "x264-params": "keyint=40:intra-refresh=1:bframes=0:threads=1",
}
packets = []
for number in range(200):
    frame = picture(number)
    frame.pts = number
    packets += encoder.encode(frame.reformat(format="yuv420p"))
packets += encoder.encode(None)
entries = [number for number, packet in enumerate(packets) if packet.is_keyframe]
stream = [bytes(packet) for packet in packets]


def decoded(first):
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    frames = []
    for number, content in enumerate(stream[first:], first):
        packet = av.Packet(content)
        packet.pts = packet.dts = number
        frames += decoder.decode(packet)
    frames += decoder.decode(None)
    assert not any(frame.is_corrupt for frame in frames)
    return {frame.pts: frame.to_ndarray(format="gray").astype(int) for frame in frames}


whole = decoded(0)
seen = []
for entry in entries:
    part = decoded(entry)
    n_broken = sum(abs(part[number] - whole[number]).mean() > 2 for number in part)
    seen.append((entry, min(part) - entry, int(n_broken)))
    print("from frame %d: shown after %d frames, %d broken" % seen[-1])
assert av.library_versions["libavcodec"] == (61, 19, 100)
assert seen == [(0, 0, 0), (40, 18, 0), (80, 18, 0), (120, 18, 0), (160, 18, 22)]
PYTHON
