"""The command line, `vmr-env`."""
