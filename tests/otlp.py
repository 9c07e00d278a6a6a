"""A receiver of traces: OTLP over HTTP, decoded by the standard's own messages.

`python -m tests.otlp [PORT]` prints each trace as a tree.
"""

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PORT = 4318


def value_of(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def attributes_of(span: Span) -> dict[str, object]:
    return {each.key: value_of(each.value) for each in span.attributes}


class Receiver:
    """Listens on a port of 127.0.0.1, and keeps what comes. `resource`: the attributes of the last sender."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.paths: list[str] = []
        self.resource: dict[str, object] = {}
        self.arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(self.path, ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, path: str, request: ExportTraceServiceRequest) -> None:
        with self.arrived:
            self.paths.append(path)
            for each in request.resource_spans:
                self.resource = {entry.key: value_of(entry.value) for entry in each.resource.attributes}
                self.spans += [span for scope in each.scope_spans for span in scope.spans]
            self.arrived.notify_all()

    def wait_for(self, roots: int, seconds: float = 20.0) -> list[Span]:
        """The first so many spans of whole requests."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.roots()) >= roots, seconds), self.spans
        return self.roots()

    def roots(self) -> list[Span]:
        known = {span.span_id for span in self.spans}
        return [span for span in self.spans if span.parent_span_id not in known]

    def children(self, of: Span) -> list[Span]:
        found = [span for span in self.spans if span.parent_span_id == of.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def tree(self, of: Span, depth: int = 0, since: int | None = None) -> Iterator[str]:
        """Lines: where in the request a span begins, how long it takes, its name, and what it says."""
        since = of.start_time_unix_nano if since is None else since
        begin, took = of.start_time_unix_nano - since, of.end_time_unix_nano - of.start_time_unix_nano
        told = " ".join(f"{name}={value}" for name, value in attributes_of(of).items())
        yield f"{begin / 1e6:9.1f} ms {took / 1e6:9.1f} ms  {'  ' * depth}{of.name}  {told}"
        for child in self.children(of):
            yield from self.tree(child, depth + 1, since)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def main(port: int) -> None:
    receiver, told = Receiver(port), 0
    print(f"traces are taken at {receiver.url}", flush=True)
    try:
        while True:
            roots = receiver.wait_for(told + 1, seconds=10**6)
            for root in roots[told:]:
                print("\n".join(receiver.tree(root)), flush=True)
            told = len(roots)
    except KeyboardInterrupt:
        receiver.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
