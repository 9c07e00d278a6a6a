"""What is said where there is no cluster, before Ray looks for one."""

import pytest

from configs.settings import Settings
from server.engines.launch import CannotLaunch

pytest.importorskip("ray", reason="Ray is not installed: pip install 'headrace[ray]'")


def test_an_address_at_which_nobody_listens():
    from server.engines.nodes.ray_cluster import RayCluster

    with pytest.raises(CannotLaunch, match=r"nobody listens at 127\.0\.0\.1:1, where the head of the Ray cluster"):
        RayCluster(Settings(ray="127.0.0.1:1"))
