"""An image for another user to see, and a queue for his answers: each is granted just that.

The other program gets two lines of text on its standard input and uses what they allow. Here it is started by the same
user, or, by root, as user 61001; two programs that know nothing of each other are granted things in the same way.
"""

import logging
import os
import subprocess
import sys

import numpy as np

import shmipc
from shmipc import Rights

SHAPE = (480, 640)


def viewer() -> None:
    image, answers = (shmipc.Capability(line).use() for line in sys.stdin)
    pixels = image.array(SHAPE)
    assert not pixels.flags.writeable  # and no trick makes it so
    answers.post(b"the mean is %.1f" % pixels.mean())
    try:
        answers.receive(timeout=0)
    except shmipc.AccessDenied as error:
        answers.post(str(error).encode())


def main() -> None:
    # It tells who was refused; at INFO also who was let in.
    logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
    other = 61001 if os.geteuid() == 0 else os.getuid()
    with (
        shmipc.SharedBuffer(SHAPE[0] * SHAPE[1]) as image,
        shmipc.ByteQueue(slots=8, slot_bytes=200, posters=1) as answers,
    ):
        image.array(SHAPE)[:] = np.arange(640, dtype=np.uint16) % 256
        to_see, to_answer = image.grant(Rights.READ, uid=other), answers.grant(Rights.POST, uid=other)
        with subprocess.Popen([sys.executable, __file__, "viewer", str(other)], stdin=subprocess.PIPE) as program:
            program.communicate(f"{to_see}\n{to_answer}".encode())
        for _ in range(2):
            answer = answers.receive_from(timeout=10)
            assert answer.uid == other  # the kernel's word
            print(f"uid {answer.uid}: {answer.body.decode()}")
        to_see.revoke()
        try:
            to_see.use()
        except shmipc.AccessDenied as error:
            print(f"after the end of it: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["viewer"]:
        if os.geteuid() != int(sys.argv[2]):
            os.setgroups([])
            os.setgid(int(sys.argv[2]))
            os.setuid(int(sys.argv[2]))
        viewer()
    else:
        main()
