#!/usr/bin/env python3
"""usage: make_tensorboard.py make OUT        the events that tests/test_tensorboard.c writes, by TensorBoard's own classes
          make_tensorboard.py read FOLDER     what TensorBoard finds in a folder of event files: curves with steps and values
"""
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def make(path):
    Event, Summary, Value = event_pb2.Event, summary_pb2.Summary, summary_pb2.Summary.Value

    def scalar(tag, value, step, now):
        return Event(wall_time=now, step=step, summary=Summary(value=[Value(tag=tag, simple_value=value)]))

    image = Summary.Image(height=16, width=300, colorspace=3, encoded_image_string=bytes(range(200)) * 2)
    events = [Event(wall_time=1700000000.25, file_version="brain.Event:2"),
              Event(wall_time=1700000000.25, step=7, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)),
              scalar("loss", 0.125, 0, 1700000001.5), scalar("lr/unet", 1e-4, 1, 1700000001.5),
              scalar("lr/text encoder", float("inf"), 300, 1700000002.0), scalar("loss/epoch", -2.5, 2**40, 1700000003.0),
              Event(wall_time=1700000004.0, step=9, summary=Summary(value=[Value(tag="sample", image=image)]))]
    with open(path, "wb") as f:
        w = RecordWriter(f)
        for e in events:
            w.write(e.SerializeToString())


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    a = EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0})
    a.Reload()
    for tag in a.Tags()["scalars"]:
        s = a.Scalars(tag)
        print(tag, len(s), "first", s[0].step, s[0].value, "last", s[-1].step, s[-1].value)
    for tag in a.Tags()["images"]:
        print(tag, [(i.step, i.width, i.height, len(i.encoded_image_string)) for i in a.Images(tag)])


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](sys.argv[2])
