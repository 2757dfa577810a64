"""A clock on which time passes only where a test says so."""


class FakeClock:
    def __init__(self, start_s: float = 100.0) -> None:
        self.time_s = start_s

    def now_s(self) -> float:
        return self.time_s

    def pass_s(self, duration_s: float) -> None:
        self.time_s += duration_s
