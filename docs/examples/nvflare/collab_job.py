"""The same with the Collab API, in the simulator: `python collab_job.py --roster roster.bin`."""

import argparse

import numpy as np
from nvflare.collab import CollabRecipe, collab
from nvflare.recipe.sim_env import SimEnv
from train import private_data, trained

from secagg_embed import Terms
from secagg_embed.nvflare import SecureAveraging, SecureClient


class Hospital(SecureClient):
    """A site; `train` is called by this process alone, so it is not published."""

    def train(self, weights):
        x, y = private_data(collab.site_name)
        return {"w": trained(weights["w"], x, y)}, len(x)


class Server:
    """The server: a loop over rounds, as in any Collab job."""

    def __init__(self, roster: str, rounds: int) -> None:
        self.roster = roster
        self.rounds = rounds

    @collab.main
    def run(self):
        weights = {"w": np.zeros(4, np.float32)}
        with SecureAveraging(self.roster, Terms(clip=4.0, max_weight=1000)) as averaging:
            for _ in range(self.rounds):
                weights = averaging.average(weights).model
                print("the mean over all sites:", weights["w"].tolist())
        return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--roster", required=True)
    parser.add_argument("--folder", default="simulation")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    server = Server(given.roster, given.rounds)
    recipe = CollabRecipe("hospitals", server=server, client=Hospital(), min_clients=given.sites)
    recipe.run(SimEnv(num_clients=given.sites, workspace_root=given.folder))
