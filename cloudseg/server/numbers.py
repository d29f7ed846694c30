"""What the server counts and times, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from collections import defaultdict

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Numbers:
    """Counts requests by route and status, and their times by route."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_BUCKETS_S) + 1))
        self._seconds: dict[str, float] = defaultdict(float)
        self._rows = 0

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request. ``route`` is the pattern, never the address: labels stay few."""
        place = sum(seconds > bound for bound in _BUCKETS_S)
        with self._lock:
            self._requests[method, route, status] += 1
            self._buckets[route][place] += 1
            self._seconds[route] += seconds

    def rows(self, n: int) -> None:
        """Count rows that were sent."""
        with self._lock:
            self._rows += n

    def text(self) -> str:
        """Return the page."""
        with self._lock:
            lines = [
                "# HELP cloudseg_http_requests_total Answered requests.",
                "# TYPE cloudseg_http_requests_total counter",
            ]
            for (method, route, status), n in sorted(self._requests.items()):
                lines.append(
                    f'cloudseg_http_requests_total{{method="{method}",route="{route}",status="{status}"}} {n}'
                )
            lines += [
                "# HELP cloudseg_http_request_seconds Time to the first byte of the answer.",
                "# TYPE cloudseg_http_request_seconds histogram",
            ]
            for route, counts in sorted(self._buckets.items()):
                so_far = 0
                for bound, n in zip([*map(str, _BUCKETS_S), "+Inf"], counts, strict=True):
                    so_far += n
                    lines.append(
                        f'cloudseg_http_request_seconds_bucket{{route="{route}",le="{bound}"}} {so_far}'
                    )
                lines.append(
                    f'cloudseg_http_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}'
                )
                lines.append(f'cloudseg_http_request_seconds_count{{route="{route}"}} {so_far}')
            lines += [
                "# HELP cloudseg_rows_sent_total Rows of soma tables in answers.",
                "# TYPE cloudseg_rows_sent_total counter",
                f"cloudseg_rows_sent_total {self._rows}",
            ]
        return "\n".join(lines) + "\n"
