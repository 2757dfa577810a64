"""What the loops of the GPU kernels issue, read from their machine code: memory stays what binds for few rows."""

import pytest

from codesign.api import load_hardware
from scripts.gpu_instructions import Loop, cases, disassembler, shares, streaming_loop
from tests.unit.gpu.test_gpu_programs import HAS_NVRTC

LISTING = """
.text.other:
.L_x_0:
        /*0000*/                   LDG.E.NA.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0010*/                   BRA `(.L_x_0) ;
//--------------------- .text.wanted         --------------------------
.text.wanted:
        /*0000*/              @!P1 LDG.E.NA.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0010*/               @P0 BRA `(.L_x_3) ;
.L_x_1:
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/              @!P1 LDG.E.NA.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0050*/                   HMMA.16816.F32 R48, R48, R40, RZ ;
        /*0060*/                   IMMA.16832.S8.S8 R48, R48.ROW, R40.COL, R48 ;
        /*0070*/                   LDG.E.128 R4, desc[UR8][R2.64] ;
        /*0080*/              @!P0 BRA `(.L_x_2) ;
.L_x_3:
        /*0090*/                   EXIT ;
//--------------------- .nv.shared
"""


def test_the_loop_that_streams_is_found_in_a_listing():
    assert streaming_loop(LISTING, "wanted") == Loop(instructions=5, loads=1, flop=4096 + 8192)
    assert streaming_loop(LISTING, "other") == Loop(instructions=2, loads=1, flop=0)


def test_a_kernel_without_such_a_loop_is_refused():
    with pytest.raises(ValueError, match=r"wanted: no loop"):
        streaming_loop(LISTING.replace(".NA", ""), "wanted")


FEW_ROWS = [case for case in cases(bfloat=True) if "up to 8 rows" in case.title or case.title.startswith("attention")]


@pytest.mark.skipif(not HAS_NVRTC or disassembler() is None, reason="needs NVRTC and nvdisasm")
@pytest.mark.parametrize("case", FEW_ROWS, ids=lambda case: case.title)
def test_few_rows_leave_issue_slots_and_tensor_cores_to_spare(case):
    found = shares(case, load_hardware("h200"))  # reads most per multiprocessor and clock
    assert 0 < found.issue < 0.75
    assert 0 < found.tensor < 0.4
    assert found.waiting_s > 1e-6  # what we assume that an access to memory under load takes
