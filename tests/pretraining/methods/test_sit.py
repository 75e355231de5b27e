"""SiT: its teacher, what its student is given, and its losses, computed again, slowly."""

import torch


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class TestTeacher:
    def test_starts_as_a_copy(self, create_sit, tiny_config):
        method = create_sit(tiny_config(drop_path_rate=0.9))
        state = method.student.state_dict()
        assert method.teacher.model.state_dict().keys() == state.keys()
        for name, value in method.teacher.model.state_dict().items():
            assert torch.equal(value, state[name])
            assert value.data_ptr() != state[name].data_ptr()

    def test_no_stochastic_depth_in_the_teacher_only(self, create_sit, tiny_config):
        method = create_sit(tiny_config(drop_path_rate=0.9))
        assert torch.equal(method.teacher.project(images()), method.teacher.project(images()))
        assert not torch.equal(method.student.project(images()), method.student.project(images()))
        assert method.student.config.drop_path_rate == 0.9

    def test_no_dropout_in_the_teacher(self, create_sit, tiny_config):
        method = create_sit(tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
        assert torch.equal(method.teacher.project(images()), method.teacher.project(images()))
        config = method.student.config
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.5, 0.5)

    def test_attention_is_the_students(self, create_sit, tiny_config):
        method = create_sit(tiny_config(), attn_implementation="eager")
        assert method.student.config._attn_implementation == "eager"
        assert method.teacher.model.config._attn_implementation == "eager"

    def test_there_is_none_without_contrast_or_where_it_is_not_asked_for(self, create_sit, tiny_config):
        for fields in ({"use_teacher": False}, {"contrastive_weight": 0.0}):
            method = create_sit(tiny_config(**fields))
            assert method.teacher is None and method.networks == [method.student]

    def test_momentum_rises_to_1_on_a_cosine(self, create_sit):
        method = create_sit(teacher_momentum=0.99)
        momenta = [method.schedules(step / 100)["teacher_momentum"] for step in range(101)]
        assert (momenta[0], momenta[50], momenta[100]) == (0.99, 0.995, 1.0)
        assert momenta == sorted(momenta)
        assert min(momenta) >= 0.99 and max(momenta) <= 1

    def test_follows_by_the_momentum_of_the_step(self, create_sit):
        method = create_sit()
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.add_(1.0)
        before = [parameter.clone() for parameter in method.teacher.model.parameters()]
        method.after_step({"teacher_momentum": 0.75})
        for old, parameter in zip(before, method.teacher.model.parameters(), strict=True):
            torch.testing.assert_close(parameter, old + 0.25, rtol=1e-4, atol=1e-5)
