import pytest

from embedfit.hosts import Retries, error_status, may_pass, quota_spent, redirect_target, too_large
from embedfit.replies import Complaint, masked


def test_a_wait_is_drawn_below_a_bound_that_doubles_and_ends(monkeypatch):
    bounds = []
    monkeypatch.setattr("random.uniform", lambda low, high: bounds.append((low, high)) or high)
    waits = [Retries(first_wait=0.5, longest_wait=3.0).wait(failures) for failures in (1, 2, 3, 4, 5, 5_000)]
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert {low for low, _ in bounds} == {0}


def test_fewer_tries_where_nobody_may_be_there():
    retries = Retries(tries=7, tries_unreachable=3)
    assert (retries.limit(unreachable=False), retries.limit(unreachable=True)) == (7, 3)


@pytest.mark.parametrize(("wait", "too_long"), [(None, False), (0.0, False), (900.0, False), (900.5, True)])
def test_a_host_that_asks_for_more_than_there_is_patience_for(wait, too_long):
    assert Retries(patience=900.0).is_too_long(wait) is too_long


@pytest.mark.parametrize(
    ("status", "complaint", "passes", "spent", "large"),
    [
        (200, Complaint(status=503), True, False, False),
        (200, Complaint(status=401), False, False, False),
        (400, Complaint("maximum context length"), False, False, True),
        (401, Complaint("too many tokens"), False, False, False),
        (402, Complaint(), False, True, False),
        (404, Complaint(), False, False, False),
        (408, Complaint(), True, False, False),
        (409, Complaint(), True, False, False),
        (413, Complaint(), False, False, True),
        (424, Complaint("out of memory"), True, False, False),
        (425, Complaint(), True, False, False),
        (429, Complaint("tokens per minute exceeded"), True, False, False),
        (429, Complaint(code="insufficient_quota"), True, True, False),
        (500, Complaint(), True, False, False),
        (529, Complaint(), True, False, False),
    ],
)
def test_what_a_status_means(status, complaint, passes, spent, large):
    status = error_status(status, complaint)
    assert (may_pass(status), quota_spent(status, complaint), too_large(status, complaint)) == (passes, spent, large)


def test_a_redirect_is_named_by_its_host_alone():
    assert redirect_target({"location": "https://me:hunter2@a.example:8/v1?key=hunter2"}) == "a.example:8"
    assert redirect_target({"location": "/login"}) == redirect_target({}) == "another address"


def test_secrets_are_masked():
    assert masked("key abc, and abc again", "abc", None, "") == "key ***, and *** again"
