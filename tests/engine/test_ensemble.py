"""What is scored in validation and test: ensembles, other batch statistics, and other inner rates."""

import numpy as np
import pytest

from paddle_maml import MAML, EpisodeBuilder, MetaLearner
from paddle_maml.data.episodes import meta_batch
from paddle_maml.engine.ensemble import Ensemble, as_tested
from paddle_maml.engine.evaluation import evaluate
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError
from paddle_maml.learners.prototypical import PrototypicalLearner
from paddle_maml.networks.conv4 import Conv4
from paddle_maml.networks.mlp import MLP

BUILDER = EpisodeBuilder(
    np.random.RandomState(0).randint(0, 256, (6, 5, 1, 28, 28)).astype("uint8"), 3, 1, 2, seed=1
)


def learner(**options):
    return MetaLearner(MAML(n_way=3, width=4), inner_steps=2, inner_lr=0.5, **options)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_an_ensemble_averages_the_probabilities_of_members_that_adapt_by_themselves():
    members = [learner(), learner(), PrototypicalLearner(Conv4(width=4))]
    x_spt, y_spt, x_qry, y_qry = meta_batch(BUILDER, range(4))
    outputs = [member.predict(x_spt, y_spt, x_qry) for member in members]
    probabilities = np.mean([softmax(of_one) for of_one in outputs], axis=0)
    together = Ensemble(members)
    np.testing.assert_allclose(
        np.exp(together.predict(x_spt, y_spt, x_qry)), probabilities, rtol=1e-4, atol=1e-7
    )
    result = evaluate(together, BUILDER, 4)
    assert result["accuracy"] == pytest.approx((probabilities.argmax(axis=-1) == y_qry).mean())
    own = np.take_along_axis(probabilities, y_qry[..., None], axis=-1)
    assert result["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert len(result["accuracy_per_step"]) == 1 and "transductive" in result["note"]


def test_a_member_that_is_sure_and_wrong_leaves_a_finite_loss():
    class Sure:
        statistics, transductive = None, False
        objective = learner().objective

        def predict(self, x_spt, y_spt, x_qry):
            return np.tile(np.float32([1e4, 0, 0]), [*x_qry.shape[:2], 1])

    fair = Sure()
    fair.predict = lambda x_spt, y_spt, x_qry: np.zeros([*x_qry.shape[:2], 3], np.float32)
    _, losses = Ensemble([Sure(), fair]).finetune(*meta_batch(BUILDER, range(2)))
    np.testing.assert_allclose(losses, (np.log(1.5) + 2 * np.log(6)) / 3 + 0 * losses, rtol=1e-5)


@pytest.mark.parametrize("statistics", MetaLearner.STATISTICS)
def test_other_batch_statistics_are_those_of_the_predictions(statistics):
    one, settings = learner(), settings_from_preset("quickstart", test_statistics=statistics)
    x_spt, y_spt, x_qry, y_qry = meta_batch(BUILDER, range(3))
    predicted = one.predict(x_spt, y_spt, x_qry, 1, statistics).argmax(axis=-1)
    with as_tested(settings, [one]) as tested:
        result = evaluate(tested, BUILDER, 3, steps=1)
    assert result["accuracy"] == pytest.approx((predicted == y_qry).mean())
    assert result["statistics"] == statistics and one.transductive == (statistics == "query")


def test_statistics_that_a_learner_lacks_and_ensembles_of_regressions_are_refused():
    settings = settings_from_preset("quickstart", test_statistics="population")
    lacks = pytest.raises(UserError, match="'population', but must be one of query, support, one")
    with lacks, as_tested(settings, [learner()]):
        pass
    regression = MetaLearner(MLP(1, (4,), 1, batch_norm=False), loss="mean-square")
    with pytest.raises(UserError, match="averages probabilities"):
        Ensemble([regression, regression])


def test_the_test_has_inner_rates_of_its_own():
    one = learner(learn_inner_lr=True)
    rates = one.inner_rates.numpy().copy()
    expected = [evaluate(other, BUILDER, 3)["loss_per_step"] for other in (one, _with_half_the_rates(one))]
    assert expected[0] != expected[1]
    settings = settings_from_preset("quickstart", test_inner_lr_factor=0.5)
    with as_tested(settings, [one]) as tested:
        assert evaluate(tested, BUILDER, 3)["loss_per_step"] == pytest.approx(expected[1])
    np.testing.assert_array_equal(one.inner_rates.numpy(), rates)


def _with_half_the_rates(one):
    other = learner(learn_inner_lr=True)
    other.set_state_dict(one.state_dict())
    other.inner_rates.set_value(one.inner_rates.numpy() * np.float32(0.5))
    return other
