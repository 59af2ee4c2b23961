"""A real HTTP server that speaks as much of OpenAI's protocol as a test wants it to."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 0
"""Any that is free."""


@contextmanager
def serving(answer, models=("tiny",)):
    """A server that answers chat completions by a function of the request: (status, body).

    Headers may stand behind; a body that is a function writes to the socket's file itself.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"data": [{"id": name} for name in models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"key": self.headers.get("Authorization")})
            self.reply(*answer(body, len(seen)))

        def reply(self, status, body, headers=()):
            if callable(body):
                self.close_connection = True
                return body(self.wfile)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + (status == 299)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", seen
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
