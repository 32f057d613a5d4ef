"""An OpenAI-compatible server on loopback that does what a test's script says, and keeps every request."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(reply, finish_reason="stop"):
    """A chat completion's body whose message is this JSON value, or this text."""
    content = reply if isinstance(reply, str) else json.dumps(reply)
    message = {"role": "assistant", "content": content}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]}  # fmt: skip


class ScriptedServer:
    """`script(server, request, number)` answers the request of this number: a body, or a `Special`."""

    def __init__(self, script):
        self.script = script
        self.requests = []
        self.headers = []
        self.times = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = ""


class Special:
    """What is not a plain 200: a status with headers, a body as it is, seconds of silence, seconds between bytes."""

    def __init__(self, body=b"{}", status=200, headers=(), silence_s=0.0, drip_s=0.0):
        self.body, self.status, self.headers = body, status, dict(headers)
        self.silence_s, self.drip_s = silence_s, drip_s


def refusal(status, message="no", **headers):
    return Special(json.dumps({"error": {"message": message}}).encode(), status, headers)


@contextmanager
def serving(script):
    """A running server."""
    server = ScriptedServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.requests)
                server.requests.append(request)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.times.append(time.monotonic())
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            try:
                self.answer(server.script(server, request, number))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up, as the test wants
            finally:
                with server.lock:
                    server.under_way -= 1

        def answer(self, what):
            special = what if isinstance(what, Special) else Special(json.dumps(what).encode())
            server.closing.wait(special.silence_s)
            self.send_response(special.status)
            for name, value in {"Content-Type": "application/json", **special.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(special.body)))
            self.end_headers()
            if not special.drip_s:
                self.wfile.write(special.body)
                return
            for byte in special.body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if server.closing.wait(special.drip_s):
                    return

        def log_message(self, *_):
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # more than all connections that come at once, or some are reset

    http = Listener(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()


def data_of(request):
    """The data of a request, read as a model would find it: between the tags, as JSON."""
    text = request["messages"][1]["content"][-1]["text"]
    opening, closing = "<data>\n", "\n</data>"
    assert text.startswith(opening)
    assert text.endswith(closing)
    return json.loads(text[len(opening) : -len(closing)])
