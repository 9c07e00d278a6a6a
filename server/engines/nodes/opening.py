"""The launcher of engines on other machines, if what it takes is installed."""

import os
from importlib.util import find_spec

from configs.settings import Settings
from server.engines.launch import CannotLaunch
from server.engines.nodes.launcher import NodeLauncher


def node_launcher(settings: Settings) -> NodeLauncher:
    """Join the cluster that the settings name.

    Raises:
        CannotLaunch: there is none, it has too little room, or its extra is not installed.
    """
    if find_spec("ray") is None:
        raise CannotLaunch("ray is set, but Ray is not installed: pip install 'headrace[ray]', or leave ray out.")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of several engines are not one line; read by the import
    from server.engines.nodes.ray_cluster import RayCluster

    return NodeLauncher(settings.engine_names, RayCluster(settings), settings.keeps)
