"""Health: for people, for load balancers, for orchestrators."""

from tests.doors.running import Running


def test_health_says_that_the_service_is_alive_without_meta(running: Running) -> None:
    answer = running.get("/health", None)
    assert (answer.status_code, answer.json()) == (200, {"data": {"status": "ok"}})
    assert "x-request-id" in answer.headers


def test_detailed_health_tells_of_each_component(running: Running) -> None:
    answer = running.get("/health/detailed")
    assert answer.status_code == 200
    assert list(answer.json()) == ["data", "meta"]
    told = answer.json()["data"]
    assert told["status"] == "ok"
    assert list(told["components"]) == ["database", "posting"]
    assert all(component["status"] == "ok" for component in told["components"].values())
    assert told["components"]["database"]["latency_ms"] >= 0


def test_livez_and_readyz_answer_anybody(running: Running) -> None:
    for path in ("/livez", "/readyz", "/livez?verbose", "/readyz?a=b"):
        answer = running.client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
