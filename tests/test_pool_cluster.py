"""Pools on clusters of several nodes: what is lost is done again, and only a task's own deaths count."""

from pathlib import Path

import pytest

from tests.clusters import free_port, run

pytestmark = pytest.mark.slow


def test_workers_of_lost_nodes_and_killed_ones_change_nothing(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        made = cluster()
        nodes = [made.add_node(num_cpus=1) for _ in range(3)]
        pool = pool_of(made.address, "work.py:sleepy", 3)
        pool.wait_until_ready(3)
        for number in range(1, 19):
            pool.submit(task(number))
        found = {one.number: one for one in pool.collect(20)}
        os.kill(running()[0], signal.SIGKILL)
        time.sleep(0.3)
        for lost in nodes[:2]:  # two are enough to lose the same task twice
            made.remove_node(lost, allow_graceful=False)
            made.add_node(num_cpus=1)
        found |= drain(pool, 18 - len(found))
        assert all(one.error is None for one in found.values()), found
        sizes = {number: one.score.bytes for number, one in found.items()}
        accuracies = {number: one.score.rungs[-1].accuracy for number, one in found.items()}
        for one in found.values():
            assert one.blob is None
            assert (FOLDER / "cache" / "artifacts" / f"{one.score.artifact}.safetensors").is_file()
        pool.close()
        assert not ray.is_initialized()
        made.shutdown()
        alone = load_workload(f"{FOLDER}/work.py:plain", "work.py:sleepy")
        from objectives.score import Scorer
        config = Config(study="any", workload=f"{FOLDER}/work.py:plain", cache=str(FOLDER / "own"))
        scorer = Scorer(alone, settings(config), teach(alone, settings(config)))
        for number in found:
            score = scorer.score(policy(number), FixedJudge())
            assert (score.bytes, score.rungs[-1].accuracy) == (sizes[number], accuracies[number])
            assert score.artifact == found[number].score.artifact
        print("equal", len(found))
        """,
    )
    assert "equal 18" in said
    assert "(raylet)" not in said


def test_a_candidate_that_kills_its_worker_three_times_fails_alone(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        made = cluster()
        made.add_node(num_cpus=1), made.add_node(num_cpus=1)
        pool = pool_of(made.address, "work.py:crashing", 2)
        for number in range(6):
            pool.submit(task(number))
        found = drain(pool, 6)
        print("error:", found[0].error)
        assert all(found[number].score is not None for number in range(1, 6)), found
        pool.close()
        made.shutdown()
        """,
    )
    died = "its process crashed or was killed, for example for want of memory"
    assert f"error: it killed its worker 3 times, the last time: {died}\n" in said


def test_workers_join_when_there_is_room_and_it_is_said_what_is_missing(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        import search.pool.staff
        search.pool.staff.FIRST_NOTICE = search.pool.staff.NOTICES = 2.0
        made = cluster()
        made.add_node(num_cpus=2)
        pool = pool_of(made.address, "work.py:plain", 2, resources={"cpus": 0.5, "custom": {"fast": 1}})
        pool.submit(task(1))
        assert pool.collect(6) == []
        print(SAID)
        assert len(SAID) >= 2
        made.add_node(num_cpus=1, resources={"fast": 1})
        assert drain(pool, 1)[1].score is not None
        made.add_node(num_cpus=1, resources={"fast": 1})
        assert pool.wait_until_ready(2, timeout=30)
        pool.close()
        made.shutdown()
        """,
    )
    assert "no worker is ready: a worker asks for 0.5 CPUs, 1 fast, and no node has 1 fast. Nodes: " in said
    assert "1 with 2 CPUs, " in said


def test_rays_client_brings_the_workload_and_takes_what_was_made(tmp_path: Path) -> None:
    port = free_port()
    said = run(
        tmp_path,
        f"""
        made = cluster(ray_client_server_port={port})
        made.add_node(num_cpus=1)
        made.add_node(num_cpus=1)
        (FOLDER / "secret.db").write_text("x")
        (FOLDER / "table.txt").write_text("x")
        (FOLDER / "look.py").write_text(
            "import os, work\\n"
            "from pathlib import Path\\n"
            "def workload():\\n"
            "  here = Path(__file__).parent\\n"
            "  if os.environ.get('LOOK'):\\n"
            "    assert os.environ['LOOK'] == 'hush', 'variable'\\n"
            "    assert 'working_dir_files' in str(here), here\\n"
            "    assert (here / 'table.txt').is_file() and not (here / 'secret.db').exists()\\n"
            "  return work.plain()\\n"
        )
        sys.path.append(str(FOLDER))
        pool = pool_of("ray://127.0.0.1:{port}", "look.py:workload", 2, runtime_env={{"env_vars": {{"LOOK": "hush"}}}})
        for number in range(12):
            pool.submit(task(number))
        found = drain(pool, 12)
        assert all(one.error is None for one in found.values()), found
        kept = [one.score.artifact for one in found.values()]
        assert all((FOLDER / "cache" / "artifacts" / f"{{one}}.safetensors").is_file() for one in kept)
        pool.close()
        made.shutdown()
        print("done", SAID)
        """,
    )
    assert "done [" in said
    assert "hush" not in said
    assert "packag" not in said
    assert "SIGTERM" not in said


def test_a_lost_client_server_is_joined_again_while_the_driver_goes_on(tmp_path: Path) -> None:
    port = free_port()
    said = run(
        tmp_path,
        f"""
        from tests import processes
        os.environ["RAY_CLIENT_RECONNECT_GRACE_PERIOD"] = "2"
        made = cluster(ray_client_server_port={port})
        made.add_node(num_cpus=1)
        crew, pool = launched("ray://127.0.0.1:{port}", "work.py:sleepy", 1)
        assert pool.wait_until_ready(1, timeout=60)
        for number in range(1, 13):
            pool.submit(task(number))
        found, longest = {{}}, 0.0
        server = f"client.server --address={{made.address}}"
        for name, until in ((server + " --host=127.0.0.1", 4), (server, 8), (None, 12)):
            end = time.monotonic() + 90
            while len(found) < until:
                assert time.monotonic() < end, (sorted(found), SAID)
                begun = time.monotonic()
                for result in pool.collect(0.2):
                    assert result.number not in found
                    found[result.number] = result
                longest = max(longest, time.monotonic() - begun)
            if name is not None:
                for one in processes.naming(name):
                    os.kill(one, signal.SIGKILL)
            if name == server:  # the proxy, too
                del made.head_node.all_processes["ray_client_server"]
                made.head_node.start_ray_client_server()
        assert all(one.error is None for one in found.values())
        assert longest < 5, longest
        crew.close()
        assert ray.is_initialized()
        stop_ray()
        assert not ray.is_initialized()
        made.shutdown()
        print("found", len(found))
        """,
        seconds=300,
    )
    assert "found 12" in said
    assert said.count("is joined again: the search goes on") == 2


def test_a_cluster_that_stays_lost_ends_the_search(tmp_path: Path) -> None:
    port = free_port()
    said = run(
        tmp_path,
        f"""
        import search.pool.connecting, search.pool.rejoining
        from tests import processes
        search.pool.rejoining.PATIENCE_SECONDS, search.pool.connecting.DOOR_SECONDS = 2.0, 1.0
        os.environ["RAY_CLIENT_RECONNECT_GRACE_PERIOD"] = "2"
        made = cluster(ray_client_server_port={port})
        made.add_node(num_cpus=1)
        pool = pool_of("ray://127.0.0.1:{port}", "work.py:sleepy", 1)
        assert pool.wait_until_ready(1, timeout=60)
        pool.submit(task(1))
        for one in processes.naming(f"client.server --address={{made.address}}"):
            os.kill(one, signal.SIGKILL)
        try:
            drain(pool, 1)
        except StudyError as error:
            print("ended:", error)
        pool.close()
        made.shutdown()
        """,
    )
    assert f"ended: the Ray cluster was lost, and not found for 2 s: ray.address ray://127.0.0.1:{port} " in said
