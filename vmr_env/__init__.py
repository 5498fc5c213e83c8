"""Video moment retrieval as Gymnasium environments."""

from vmr_env.envs.registration import register_all

__version__ = "0.1.0"

register_all()
