"""Right implementations in unusual forms, none of which is accused; and what is said of where a mistake shows."""

import numpy as np
import pytest
from zoo import Animal

from ddpm_ref.conformance import Property, check, load_adapter
from ddpm_ref.conformance.judge import Case
from ddpm_ref.conformance.property import Result, run

LOOP = ["sample-start", "sample-visits", "sample-steps", "sample-last"]
SHORT = {"T": 50, "schedule": "cosine"}


def assert_all_hold(animal: Animal, ids: list[str]) -> list[Result]:
    report = check(animal, only=ids)
    assert [r.status for r in report] == ["holds"] * len(ids), report.table()
    return list(report)


def run_with(ask, n=None):
    """A loop whose model is asked through ask(model, x, t)."""

    def change(a: Animal) -> None:
        old = a.run
        a.run = lambda model, x, start: old(lambda x, t: ask(model, x, t), x, start)

    return change


def in_halves(model, x, t):
    half = len(x) // 2
    return np.concatenate([model(x[:half], t[:half]), model(x[half:], t[half:])])


ASKED = {
    "a column of floats": lambda model, x, t: model(x, t.astype(float)[:, None]),
    "one number": lambda model, x, t: model(x, int(t[0])),
    "halves of the batch": in_halves,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_model_may_be_given_its_t_and_its_batch_in_any_form(ask) -> None:
    animal = Animal(**SHORT)
    run_with(ask)(animal)
    assert_all_hold(animal, [*LOOP, "interpolation-mix", "interpolation-chain"])


def test_images_may_be_sampled_one_after_the_other() -> None:
    animal = Animal(**SHORT)
    old = animal.sample
    animal.sample = lambda model, n: np.concatenate([old(model, 1) for _ in range(n)])
    assert_all_hold(animal, LOOP)


def test_a_loop_that_asks_about_other_numbers_of_images_is_not_judged_and_does_not_end_the_report() -> None:
    animal = Animal(**SHORT)
    run_with(lambda model, x, t: model(np.concatenate([x, x]), np.concatenate([t, t]))[: len(x)])(animal)
    report = check(animal, only=["sample-steps", "beta"])
    assert [r.status for r in report] == ["not offered", "holds"]
    assert "images at a time" in report.results[0].diagnosis


def test_images_may_be_returned_as_grey_levels_and_x_1_may_not() -> None:
    for number, status in ((1, "holds"), (0, "broken")):
        animal = Animal(**SHORT, clip=True)
        run, last = animal.run, {}

        def watched_run(model, x, start, run=run, last=last):
            last["after"] = run(lambda x, t: last.update(before=x) or model(x, t), x, start)
            return last["after"]

        animal.run = watched_run
        old = animal.sample

        def sample(model, n, old=old, last=last, animal=animal, number=number):
            x = old(model, n)
            return animal.scale(animal.unscale(x if number else last["before"]))

        animal.sample = sample
        result = check(animal, only=["sample-last"]).results[0]
        assert result.status == status and ("grey levels" in result.diagnosis) == (status == "holds")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("predicts", ["eps", "x_0"])
def test_the_reverse_step_may_be_written_as_ddim_at_eta_1(predicts: str, clip: bool) -> None:
    class Written(Animal):
        def p_mean_var(self, x_t, t, output, *_):
            x_0 = self.predict_x_0(x_t, t, output)
            x_0 = np.clip(x_0, -1, 1) if self.c["clip"] else x_0
            eps, var = self.predict_eps(x_t, t, x_0), self.at(self.tilde, t, x_t)
            rest = np.maximum(1 - self.at(self.A_prev, t, x_t) - var, 0)
            return self.at(np.sqrt(self.A_prev), t, x_t) * x_0 + np.sqrt(rest) * eps, var

    animal = Written(var="beta_tilde", predicts=predicts, clip=clip)
    assert_all_hold(animal, ["reverse-mean", "reverse-var", "clip", "step-mean", "step-noise", *LOOP])


def test_draws_of_t_may_be_stratified_and_one_for_a_batch_is_noted() -> None:
    animal = Animal(T=100)
    animal.draw_t = lambda n: 1 + np.floor((animal.rng.uniform() + np.arange(n) / n) % 1 * 100).astype(int)
    assert_all_hold(animal, ["draw-t"])
    animal.draw_t = lambda n: np.full(n, animal.rng.integers(1, 101))
    assert "one t" in assert_all_hold(animal, ["draw-t"])[0].diagnosis
    animal.draw_t = lambda n: np.full(n, animal.rng.integers(1, 100))
    assert check(animal, only=["draw-t"]).broken


def test_a_function_that_overwrites_its_arguments_is_noted() -> None:
    animal = Animal()
    old = animal.q_sample

    def q_sample(x_0, t, eps):
        x_0[...] = old(x_0, t, eps)
        return x_0

    animal.q_sample = q_sample
    report = check(animal, only=["q-sample", "rows"])
    assert [r.status for r in report] == ["holds", "holds"]
    assert "q_sample overwrites its arguments" in report.results[0].diagnosis and not report.results[1].diagnosis


# --- where a mistake shows -------------------------------------------------------------------------------------------

EXTENTS = {
    "at t = 501 only: got": lambda t: np.where(t == 501, 502, t),
    "first at t = 129 (their 128), and from there on (does t overflow 8 bits?): got": lambda t: (t - 1) % 128 + 1,
    "first at t = 1 (their 0), at all t: got": lambda t: 1001 - t,
    "first at t = 3 (their 2), up to t = 9: got": lambda t: np.where((t > 2) & (t < 10), t + 2, t),
    "first at t = 5 (their 4), at 2 of 1000 t: got": lambda t: np.where((t == 5) | (t == 50), t + 9, t),
}


@pytest.mark.parametrize("words, wrong", EXTENTS.items(), ids=EXTENTS)
def test_it_is_said_at_which_t_a_mistake_shows(words: str, wrong) -> None:
    animal = Animal(t_first=0)
    old = animal.alpha_bar
    animal.alpha_bar = lambda: old()[wrong(np.arange(1, 1001)) - 1]
    detail = check(animal, only=["alpha-bar"]).results[0].detail()
    assert words.replace("501 only", "501 (their 500) only") in detail


def test_what_many_lines_say_alike_is_said_once_more_with_what_to_declare() -> None:
    class Late(Animal):
        def at(self, table, t, x):
            return super().at(table, np.minimum(t + 1, 1000), x)

    assert "is t_first=0 to be declared?" in check(Late(), only=["q-sample", "q-step", "q-mean-var"]).table()
    single = Animal(tables="float32", precision="float64")
    assert 'is precision="float32" to be declared?' in check(single, only=["beta", "beta-tilde", "q-sample"]).table()


def test_a_failure_of_the_checker_itself_is_a_line_of_the_report() -> None:
    def fails(case: Case) -> None:
        raise IndexError("mine")

    report = run([Property("x", "§1", "title", (), fails)], load_adapter(Animal()), 0)
    assert report.exit_status == 2 and "the checker failed: IndexError: mine" in report.results[0].diagnosis
