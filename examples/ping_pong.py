"""Two processes throw a ball: messages, mailboxes, and who sent what."""

import shmipc

ROUNDS = 1000


def pong() -> None:
    """A function actor: send every ball back to whoever threw it, one higher; ends when it is told to stop."""
    while True:
        ball = shmipc.receive()
        shmipc.send(ball.sender, ball.body + 1, tag=ball.tag)


def main() -> None:
    with shmipc.System() as system:
        other = system.spawn(pong)
        ball = 0
        for number in range(1, ROUNDS + 1):
            shmipc.send(other, ball, tag=number)
            ball = shmipc.receive(sender=other, tag=number, timeout=10.0).body
        print(f"the ball went there and back {ROUNDS} times and is {ball} now")
        assert ball == ROUNDS


if __name__ == "__main__":
    main()
