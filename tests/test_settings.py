"""What is settled before choices are made: models, channels, blocks."""

from search.settings import MOST_DROPPED, Setting, policy_of, settings_of
from spaces.site_space import SiteSpace
from spaces.space import Block, GroupSpace, Space, StudentSpace

SITES = tuple(SiteSpace(name, ("uniform",), (0.0, 0.5), (4, 8)) for name in ("stem", "a.0", "b.0", "head"))
SMALL = StudentSpace("small", SITES[:1])
GROUPS = (GroupSpace("group-stem", (0.0, 0.2, 0.5)), GroupSpace("group-head", (0.0, 0.4)))
BLOCKS = (Block("a", ("a.0",)), Block("b", ("b.0",)))


def names(setting: Setting) -> list[str]:
    return [site.name for site in setting.sites]


class TestSettings:
    def test_a_plain_space_has_one(self) -> None:
        assert settings_of(Space(SITES)) == [Setting(SITES)]

    def test_each_share_of_channels_is_removed_everywhere_as_nearly_as_groups_allow(self) -> None:
        found = settings_of(Space(SITES, groups=GROUPS))
        assert [dict(one.channels) for one in found] == [
            {},
            {"group-stem": 0.2},  # of 0 and 0.4, as near, the smaller
            {"group-stem": 0.5, "group-head": 0.4},
        ]
        assert all(names(one) == names(found[0]) for one in found)

    def test_each_block_is_left_out_alone_and_all_together(self) -> None:
        found = settings_of(Space(SITES, blocks=BLOCKS))
        assert [one.dropped for one in found] == [(), ("a", "b"), ("a",), ("b",)]
        assert [names(one) for one in found[1:]] == [["stem", "head"], ["stem", "b.0", "head"], ["stem", "a.0", "head"]]

    def test_the_smallest_is_among_them(self) -> None:
        found = settings_of(Space(SITES, blocks=BLOCKS, groups=GROUPS))
        assert Setting((SITES[0], SITES[3]), None, {"group-stem": 0.5, "group-head": 0.4}, ("a", "b")) in found

    def test_students_come_before_what_may_be_too_much(self) -> None:
        found = settings_of(Space(SITES, students=(SMALL,), blocks=BLOCKS, groups=GROUPS))
        assert found[:2] == [Setting(SITES), Setting(SMALL.sites, "small")]
        assert [one.model for one in found].count("small") == 1

    def test_of_many_blocks_only_some_are_left_out_alone(self) -> None:
        many = tuple(SiteSpace(f"b{i}.0", ("uniform",), (0.0,), (4,)) for i in range(20))
        found = settings_of(Space(many, blocks=tuple(Block(f"b{i}", (f"b{i}.0",)) for i in range(20))))
        assert len(found) == 2 + MOST_DROPPED

    def test_none_is_there_twice(self) -> None:
        found = settings_of(Space(SITES, groups=(GroupSpace("g", (0.0, 0.3)), GroupSpace("h", (0.0, 0.31)))))
        found += settings_of(Space(SITES, blocks=BLOCKS[:1]))
        keys = [(one.model, tuple(one.channels.items()), one.dropped) for one in found[:-2]]
        assert len(set(keys)) == len(keys)
        assert [one.dropped for one in found[-2:]] == [(), ("a",)]

    def test_its_policy_says_what_is_settled(self) -> None:
        space = Space(SITES, students=(SMALL,), blocks=BLOCKS, groups=GROUPS)
        for one in settings_of(space):
            policy = policy_of(space, one)
            assert (policy.model, dict(policy.channels), policy.dropped) == (one.model, dict(one.channels), one.dropped)
            assert policy.sites == {}
