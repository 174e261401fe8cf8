# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Frames on the line between the lab and the agent of a guest.

A frame is a kind (one character), the number of a process (0: none) and bytes.

To the guest:                               From the guest:
    config  C  JSON: what host to be            listening   L  send the config
    run     R  JSON: argv, env, cwd ...         ready       Y  the host is up
    input   I  bytes for stdin; empty: end      output      O  bytes of stdout
    signal  S  JSON: [number, whole group]      errors      E  bytes of stderr
    window  W  JSON: [rows, columns]            exited      X  JSON: status, as subprocess has it
    sweep   Z  kill every process               swept       Z
                                                failed      F  text: the host cannot be set up
                                                taken       A  its number: so many bytes were read

The line is a console of the guest. When its input buffer of 4096 bytes gets nearly full, the kernel
stops to listen to it, for good. So the lab sends no more than LINE_ROOM bytes that were not taken.
"""
import struct

HEAD = struct.Struct("<cII")


def pack(kind, number=0, data=b""):
    return HEAD.pack(kind, number, len(data)) + data


class Parser:
    def __init__(self):
        self.left = b""

    def feed(self, data):
        """The frames [(kind, number, bytes)] that are complete now."""
        frames, buffer, at = [], self.left + data, 0
        while len(buffer) >= at + HEAD.size:
            kind, number, length = HEAD.unpack_from(buffer, at)
            end = at + HEAD.size + length
            if len(buffer) < end:
                break
            frames.append((kind, number, buffer[at + HEAD.size:end]))
            at = end
        self.left = buffer[at:]
        return frames
