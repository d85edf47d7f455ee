"""Models the application, which knows only its own tables: transactions of every shape, in bursts and pauses."""

import asyncio

from tests.simulation.history import Change, State, applied
from tests.simulation.postgres import ModelPostgres
from tests.simulation.world import World
from tests.support.cache_model import turn


class Application:
    def __init__(self, world: World, server: ModelPostgres) -> None:
        self.world = world
        self.dice = world.dice
        self.server = server
        self.version = 0

    def commit(self) -> None:
        dice = self.dice
        if dice.random() < 0.05:
            self.version += 1
            self.server.emit(f"v{self.version}")
            return
        state, changes = dict(self.server.history.states[-1]), list[Change]()
        count = dice.choice((0, 1, 1, 1, 2, 3, 3, 40)) if dice.random() < 0.5 else 1
        for _ in range(count):
            change = self._change(state, "x" * (90 if count > 10 else 5))
            state = applied(state, (change,))
            changes.append(change)
        self.server.commit(changes)

    def _change(self, state: State, filling: str) -> Change:
        """Draw one of all the changes that a session can make, or a logical message."""
        dice, id_, die = self.dice, self.dice.randint(1, 8), self.dice.random()
        self.version += 1
        content = f"v{self.version} {filling}"
        old = state.get(id_)
        if die < 0.03:
            return Change("t") if die < 0.02 else Change("m", text=content)
        if old is None:
            session, pos = dice.choice("aaabb"), dice.randint(1, 12)
            return Change("c", None, turn(id_, None if die < 0.08 else session, pos, content))
        if die < 0.25:
            return Change("d", old)
        new = {**old, "content": content}
        if die < 0.35:
            return Change("u", old, {**old, "pos": dice.randint(1, 12)}, toasted=True)
        if die < 0.45:
            new["pos"] = dice.choice((None, dice.randint(1, 12)))
        elif die < 0.55:
            new["session_hash"] = dice.choice(("a", "b", None))
        elif die < 0.65 and (free := sorted(set(range(1, 9)) - set(state))):
            new["id"] = dice.choice(free)
            new["turn_id"] = f"t{new['id']}"
        return Change("u", old, new)

    async def work(self, seconds: float) -> None:
        """Commit in bursts and pauses, for about so many seconds."""
        left = self.dice.randint(5, 40)
        pause_s = seconds / left
        while left and not self.world.over.is_set():
            await asyncio.sleep(self.dice.choice((0.0, 0.01, pause_s * 2)))
            if self.dice.random() < 0.2:
                self.server.write_noise(self.dice.randint(1, 5_000))
            if self.server.up:
                self.commit()
                left -= 1
