"""Reads .mat files as `python -m fastaae.matfiles` does, but by forks of a process that has SciPy: 0.4 s faster.

One line of JSON for each file, [folder, arguments]; the answer is the exit status, and what was said lies in
folder/stderr.
"""

import json
import os
import signal
import sys

import scipy.io  # noqa: F401

from fastaae import matfiles

for line in sys.stdin:
    folder, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os.chdir(folder)
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
        try:
            matfiles._main(*arguments)
        except SystemExit as error:
            os.write(2, str(error).encode())
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
