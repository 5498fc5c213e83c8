"""Supervised training without any dropout, as a program: what is left is equal on any number of processes."""

from vmr_env.backbones import train
from vmr_env.backbones.girl_detr.config import GirlDetrConfig
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.programs import run_program


class Undropped(GirlDetr):
    """The detector with every dropout at 0, also those that are no options."""

    def _build(self, config: GirlDetrConfig) -> None:
        super()._build(config)
        for module in self.modules():
            if hasattr(module, "p"):
                module.p = 0.0


if __name__ == "__main__":
    train.GirlDetr = Undropped  # type: ignore[attr-defined, misc]
    run_program(train.main)
