"""What really happened: real kernels run, timed, checked and recorded with their conditions."""
