from d2det_platform.train.scaler import FIRST_SCALE, GROWTH_STEPS, LossScaler


def test_a_scale_that_overflows_is_halved_and_the_step_excused() -> None:
    scaler = LossScaler({}, enabled=True)
    assert scaler.update(is_finite=False)
    assert scaler.scale == FIRST_SCALE / 2


def test_a_scale_that_cannot_be_lowered_excuses_nothing() -> None:
    numbers = {"loss_scale": 1.0}
    assert not LossScaler(numbers, enabled=True).update(is_finite=False)
    assert numbers["loss_scale"] == 1.0


def test_many_finite_steps_double_it_also_across_a_restart() -> None:
    numbers: dict = {}
    for part in range(2):
        scaler = LossScaler(numbers, enabled=True)
        for _ in range(GROWTH_STEPS // 2):
            assert scaler.scale == FIRST_SCALE, part
            scaler.update(is_finite=True)
    assert LossScaler(numbers, enabled=True).scale == 2 * FIRST_SCALE


def test_without_float16_there_is_no_scale_and_no_excuse() -> None:
    scaler = LossScaler({}, enabled=False)
    assert (scaler.scale, scaler.update(is_finite=False)) == (1.0, False)
