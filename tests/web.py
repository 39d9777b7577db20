"""A miniature HTTP server that can cut connections, ignore ranges, and change its files."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """What the server gives, and what it was asked.

    Args:
        files: Content by path.
    """

    def __init__(self, files):
        self.files = dict(files)
        self.ranges = True
        self.cuts = []  # bytes after which the next answers break off
        self.statuses = []  # of the next answers, instead of 200
        self.delay = 0.0
        self.off_by = 0  # answers to a range begin this many bytes earlier than asked, and say so
        self.asked = []  # path and Range of each request
        self.url = ""

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        time.sleep(self.delay)
        content = self.files.get(handler.path)
        status = self.statuses.pop(0) if self.statuses else 200 if content is not None else 404
        if status != 200:
            handler.send_error(status)
            return
        tag, start = f'"{hash(content)}"', 0
        unchanged = handler.headers.get("If-Range") in (None, tag)
        if wanted and self.ranges and unchanged:
            start = int(wanted.removeprefix("bytes=").rstrip("-")) - self.off_by
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(content)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.send_header("ETag", tag)
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        handler.wfile.write(content[start:end])
        handler.close_connection = True


@contextmanager
def serve(files):
    """Run a server on a free port of this machine."""
    web = Web(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.answer(self)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
