"""Python runs this when it starts, wherever its folder is on PYTHONPATH."""

import os
import sys
import traceback

_PICKLES = (".bin", ".ckpt", ".joblib", ".npz", ".pickle", ".pkl", ".pt", ".pth")
_ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_FILE = os.open(os.environ["DF_TEST_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _watch(event, arguments):
    if event in _ADDRESSES:
        notable = isinstance(arguments[1], tuple)  # an internet address; local sockets have a path
    elif event == "open":
        notable = isinstance(arguments[0], str) and arguments[0].endswith(_PICKLES)
    else:
        notable = event in _NAMES or event == "pickle.find_class"
    if notable:
        callers = " < ".join(f"{f.filename}:{f.lineno}" for f in traceback.extract_stack(limit=8)[-2::-1])
        os.write(_FILE, f"{event} {arguments[1:] if event in _ADDRESSES else arguments} by {callers}\n".encode())


sys.addaudithook(_watch)
