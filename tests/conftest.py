"""What holds for every test."""

import os

# One BLAS thread: the tests multiply small matrices, and threads that wait for each other on a busy machine make
# phantoms many times slower to draw. It must be set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
