from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bitnet_core.testing import random_model, tiny_spec
from bitnet_training.distill import NOTHING, Distillation, Weighing, expected, logits_loss, relation_loss
from bitnet_training.models import build, from_core

LLAMA = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False)


def numbers(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = NOTHING
    targets[0, :5] = NOTHING
    return tokens, targets


def test_divergence_of_softened_logits_is_that_of_its_definition() -> None:
    student, teacher = numbers(3, 5), numbers(3, 5, seed=8)
    divergences = []
    for new, old in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(value / 2.5) for value in row] for row in (old, new))
        p, q = ([value / sum(row) for value in row] for row in (p, q))
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert logits_loss(student, expected([teacher], 2.5), 2.5).tolist() == pytest.approx(divergences, rel=1e-5)
    assert logits_loss(teacher, expected([teacher], 2.5), 2.5).tolist() == pytest.approx([0] * 3, abs=1e-7)


def test_several_teachers_expect_the_mean_of_what_each_expects() -> None:
    teachers = [numbers(3, 5, seed=seed) for seed in (1, 2, 3)]
    mean = torch.stack([(one / 1.5).softmax(-1) for one in teachers]).mean(0)
    torch.testing.assert_close(expected(teachers, 1.5).exp(), mean)


def test_relations_are_those_of_their_definition() -> None:
    student, teacher = numbers(2, 4, 6), numbers(2, 4, 10, seed=8)
    expected = 0.0
    for row in range(2):
        for head in range(2):
            new, old = (
                torch.softmax(part[row, :, head * width : (head + 1) * width] @ part[row, :, head * width :
                              (head + 1) * width].T / width**0.5, -1)
                for part, width in ((student, 3), (teacher, 5))
            )  # fmt: skip
            expected += float((old * (old / new).log()).sum()) / (2 * 2 * 4)
    assert relation_loss(student, teacher, 2).item() == pytest.approx(expected, rel=1e-5)
    assert relation_loss(teacher, teacher, 2).item() == pytest.approx(0, abs=1e-7)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 8, got 3"):
        relation_loss(numbers(1, 2, 8), numbers(1, 2, 8), 3)


def test_the_total_is_the_weighed_sum_and_reaches_the_student_alone() -> None:
    torch.manual_seed(0)
    student, teacher = build(LLAMA), build(replace(LLAMA, hidden_size=64, head_size=16, layers=3), None)
    learned = Distillation([teacher], student, Weighing(temperature=2, task=0.5, logits=3, attention=7))
    tokens, targets = some_batch()
    losses = learned.loss(student(input_ids=tokens).logits, targets, input_ids=tokens)
    parts = 0.5 * losses.task + 3 * losses.logits + 7 * losses.attention
    torch.testing.assert_close(losses.total.detach(), parts)
    assert min(losses.task, losses.logits, losses.attention) > 0
    losses.total.backward()
    assert all(value.grad is not None for value in student.parameters())
    assert not any(value.requires_grad for value in teacher.parameters())
    learned.close()


def test_a_student_like_its_teacher_has_the_task_alone_to_learn() -> None:
    torch.manual_seed(0)
    student = build(LLAMA)
    learned = Distillation([student], student, Weighing())
    tokens, targets = some_batch()
    losses = learned.loss(student(input_ids=tokens).logits, targets, input_ids=tokens)
    assert losses.logits.item() == pytest.approx(0, abs=1e-6)
    assert losses.attention.item() == pytest.approx(0, abs=1e-6)


def test_it_brings_a_student_nearer_to_its_teacher() -> None:
    torch.manual_seed(0)
    teacher = from_core(random_model(tiny_spec()), "float")
    student = build(tiny_spec())
    learned = Distillation([teacher], student, Weighing(temperature=2, logits=1, attention=1))
    tokens, targets = some_batch()
    adam = torch.optim.AdamW(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        found = learned.loss(student(input_ids=tokens).logits, targets, input_ids=tokens)
        found.total.backward()
        adam.step()
        adam.zero_grad()
        losses.append(found)
    assert losses[-1].logits < 0.7 * losses[0].logits
    assert losses[-1].attention < losses[0].attention


def test_where_nothing_is_to_be_learned_there_is_no_loss() -> None:
    torch.manual_seed(0)
    student = build(LLAMA)
    learned = Distillation([build(LLAMA, None)], student, Weighing(attention=0))
    tokens, targets = some_batch()
    losses = learned.loss(student(input_ids=tokens).logits, torch.full_like(targets, NOTHING), input_ids=tokens)
    assert losses.total == 0


def test_logits_are_scored_once() -> None:
    torch.manual_seed(0)
    student = build(LLAMA)
    learned = Distillation([build(LLAMA, None)], student, Weighing())
    tokens, targets = some_batch()
    logits = student(input_ids=tokens).logits
    learned.loss(logits, targets, input_ids=tokens)
    with pytest.raises(ValueError, match="of a forward pass of the student since the last loss"):
        learned.loss(logits, targets, input_ids=tokens)
    learned.close()
    student(input_ids=tokens)
    with pytest.raises(ValueError, match="since the last loss"):
        learned.loss(logits, targets, input_ids=tokens)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0}, "temperature: expected a number above 0, got 0"),
        ({"logits": -1}, "logits: expected 0 or more, got -1"),
        ({"task": -1}, "task: expected 0 or more, got -1"),
        ({"layer": 2}, "layer: expected one of the student's 2, got 2"),
        ({"layer": -3}, "layer: expected one of the student's 2, got -3"),
    ],
)
def test_what_cannot_be_weighed_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation([build(LLAMA, None)], build(LLAMA), Weighing(**values))


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher: expected a vocabulary of 96 tokens, as the student's, got 90"):
        Distillation([build(replace(LLAMA, vocab_size=90), None)], build(LLAMA), Weighing())


def test_the_vocabulary_of_every_teacher_is_looked_at() -> None:
    teachers = [build(replace(LLAMA, vocab_size=size), None) for size in (96, 90)]
    with pytest.raises(ValueError, match="teacher: expected a vocabulary of 96 tokens, as the student's, got 90"):
        Distillation(teachers, build(LLAMA), Weighing(attention=0))


def test_relations_are_those_of_one_teacher_alone() -> None:
    with pytest.raises(ValueError, match="teachers: expected one teacher, whose attention is related, got 2"):
        Distillation([build(LLAMA, None)] * 2, build(LLAMA), Weighing(attention=1))
    with pytest.raises(ValueError, match="teachers: expected one teacher or more, got 0"):
        Distillation([], build(LLAMA), Weighing(attention=0))


def test_without_the_task_what_teachers_expect_is_all_that_is_learned() -> None:
    torch.manual_seed(0)
    teachers, student = [build(LLAMA, None), build(LLAMA, None)], build(LLAMA)
    learned = Distillation(teachers, student, Weighing(temperature=1, task=0, logits=1, attention=0))
    tokens, targets = some_batch()
    losses = learned.loss(student(input_ids=tokens).logits, targets, input_ids=tokens)
    assert losses.task == 0
    found = torch.autograd.grad(losses.total, student.get_parameter("lm_head.weight"))
    # Soft cross entropy, over the tokens that have something to learn.
    where = targets != NOTHING
    with torch.no_grad():
        mean = torch.stack([one(input_ids=tokens).logits.softmax(-1) for one in teachers]).mean(0)
    nats = -(mean * student(input_ids=tokens).logits.log_softmax(-1)).sum(-1)[where].mean()
    torch.testing.assert_close(found, torch.autograd.grad(nats, student.get_parameter("lm_head.weight")))
