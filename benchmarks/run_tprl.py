"""The main job from a checkout: the same as `vmr-env tprl`; see `vmr_env.benchmarks.experiment.main`."""

import sys

from vmr_env.benchmarks.experiment.main import main

if __name__ == "__main__":
    sys.exit(main())
