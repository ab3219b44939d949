import pytest
import torch

from itnet.rule import chunks, scan


@pytest.fixture(scope="module")
def short_chunks():
    "Chunks of three points, so that short lines have several; one thread, since everything is small."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "chunk_size", lambda *sizes: 3)
        patch.setattr(chunks, "MANY", 0)
        patch.setattr(chunks, "BLOCK", 2)
        patch.setattr(chunks, "NEARBY", 200)
        yield
    torch.set_num_threads(threads)
