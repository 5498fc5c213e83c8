"""Three episodes in the terminal, by an agent that takes possible actions by chance."""

import warnings

import gymnasium


def main(episodes: int = 3) -> list[str]:
    """Print every step; returns the pictures of the last steps."""
    env = gymnasium.make("vmr_env:VMR-Charades-v0", split="val", render_mode="ansi")
    env.action_space.seed(0)
    last = []
    for episode in range(episodes):
        _, info = env.reset(seed=episode)
        over = False
        while not over:
            action = env.action_space.sample(info["action_mask"].astype("int8"))
            _, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            print(env.render())
        last.append(str(env.render()))
    return last


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the data are simulated
    main()
