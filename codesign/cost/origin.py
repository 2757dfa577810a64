"""Where a predicted number comes from."""

from enum import StrEnum


class Origin(StrEnum):
    """Most trusted first."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    TRANSFERRED = "transferred"
    DATASHEET = "datasheet"
