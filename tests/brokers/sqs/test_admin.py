"""What is made at AWS."""

import pytest

pytest.importorskip("aiobotocore")


from things_kit.brokers.sqs.policy import allowing


def test_a_policy_keeps_the_statements_of_others() -> None:
    other = {"Sid": "x", "Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": "q"}
    once = allowing({"Statement": other}, "arn:topic", "arn:queue")
    assert once["Statement"][0] == other
    assert once["Statement"][1]["Condition"] == {"ArnEquals": {"aws:SourceArn": "arn:topic"}}
    assert allowing(once, "arn:topic", "arn:queue") == once
