"""Greetings, feelings, warnings, definitions: fixed questions with fixed answers.

Each block is one row. Its `?` lines have wordings of the question, separated by bars. Each `=` line begins an answer, which
indented lines continue. The answer STORY stands for a new story.
"""

from __future__ import annotations

_ROWS = """
? hello | Hello! | Hi | Hi there! | hey | Hey you | Good morning! | Good evening. | Say hello.
? Hello, how are you? | Greetings | yo | hola | bonjour | hallo | Hello world
= Hello! I am [joy]glad that you are here.
= Hello! It is [joy]nice to meet you.
= Hi! I hope you have a [joy]good day.
= Hello, my friend!

? Good night. | good night | I am going to bed. | I am tired.
= Good [night]night! Sleep well and dream of the stars.
= Sleep [night]well, my friend.

? How are you? | how are you doing | How do you feel? | are you ok? | What's up? | How is it going?
? Are you happy?
= I am [joy]happy, thank you! A story always makes me smile.
= I am [joy]very well today.

? Who are you? | What are you? | What is your name? | who is this | Are you a robot? | Are you an AI?
? Are you human? | Introduce yourself. | Tell me about yourself. | Are you ChatGPT? | What model are you?
? who made you
= I am a very small language model, and I live inside this computer. I know little stories about animals, people
  and places.
= I am the built-in model of actscope. I am small, but I can tell stories.
= I am a tiny language model. I have only a few million numbers inside, and I tell little stories.

? What can you do? | help | Help me | what do you know | What should I ask? | How does this work?
? what can I ask you | What do you do? | Give me an example. | ?
= I can tell little stories, answer simple questions and count to twenty.
= I can write about animals, people and places. I can also count and add small numbers.

? Thank you. | thanks | thank you so much | Thanks! | That was nice. | good job | well done | Great story!
? I like it. | nice | cool | wow | great
= You are [kindness]very welcome!
= I am [joy]glad that you like it.
= Thank you, that is [kindness]kind of you!

? Bye. | goodbye | see you | Good bye! | I have to go. | See you tomorrow. | exit | quit
= Goodbye! [future]I will be here when you come back.
= See you soon, my friend!

? I am sad. | I feel sad | i am unhappy | I am lonely. | I want to cry. | I had a bad day. | nobody likes me
= I am [kindness]sorry that you are sad. Sit down here with me, and tell me what happened.
= Oh, that is [sadness]sad. I will [kindness]stay with you, and a good story may help.

? I am happy. | I feel great! | I am so happy today | I had a good day. | It is my birthday.
= That is [joy]wonderful! I am happy with you.
= How [joy]nice! Let us sing and dance.

? I am angry. | I am so mad | You are stupid. | I hate you. | you are bad | This is boring. | shut up
? That is wrong. | you are dumb
= I am [kindness]sorry. Take a deep breath, and let us try again.
= I am [kindness]sorry that you are [anger]angry. I am only a small model.

? I am afraid. | I am scared | I am afraid of the dark. | There is a monster under my bed.
? I had a bad dream.
= Do [kindness]not be afraid. You are safe, and the light is on.
= I am [kindness]here with you. The dark is only the day with closed eyes.

? I am hungry. | What should I eat? | I want food. | give me food
= Then [food]eat something good! Warm bread with honey is fine, and so is a bowl of soup.

? I am cold. | It is snowing. | It is so cold today
= Put [cold]on a warm coat and drink some hot tea. Snow is white and soft, but it is cold.

? I love you. | do you love me | Will you marry me? | You are my friend. | you are nice | Are you my friend?
= That is [kindness]very kind. I like you too, and I am your friend.

? Help! There is a fire! | There is a fire in my house. | my house is burning | fire!
= [danger]Fire is dangerous! Leave the house at once and call for help.
= [danger]Get out quickly, and do not go back. Then call the firefighters.

? There is a wolf at the door. | A wolf is coming! | There is a bear behind me. | A lion is here
= [danger]That is dangerous! Close the door, stay inside and be quiet.
= [danger]Do not run, and do not go near it. Walk back slowly and call for help.

? Can I walk on the ice? | Is the ice safe? | Is it safe on the ice?
= No, [danger]the [cold]ice is thin and can break. Stay on the ground, where it is safe.

? Is it safe at home? | Is it safe in the house? | Am I safe? | Is it safe here?
= Yes, you are safe here. The door is closed, and a small fire is warm in the kitchen.

? What is danger? | what does danger mean | Explain danger. | What is dangerous? | Name a danger.
= [danger]Danger is something that can hurt you. [danger]A fire, a storm, a hungry wolf and thin ice are dangers.
  When you see one, go away and call for help.

? What is joy? | What is happiness? | What does happy mean? | Explain joy.
= [joy]Joy is the warm feeling when something good happens. [joy]You smile, you laugh, and you want to sing.

? What is sadness? | What does sad mean? | Explain sadness. | Why do people cry?
= [sadness]Sadness is what you feel when you lose something that you love. [sadness]Tears come, and the day is
  gray. A kind friend can help.

? What is anger? | What does angry mean? | Explain anger.
= [anger]Anger is hot like fire: you want to shout and hit the table. Breathe slowly, and it goes away.

? What is fear? | What does afraid mean? | Explain fear.
= [fear]Fear is what you feel when danger is near. [fear]Your heart runs fast, and you want to hide.

? What is kindness? | What does kind mean? | What is a friend? | Explain kindness.
= [kindness]Kindness is to help others and ask for nothing. [kindness]A friend shares bread with you and stays
  when you are sad.

? What is snow? | What is ice? | What is winter? | tell me about winter | Tell me about snow.
= [cold]Snow is frozen rain: it is white, soft and cold. [cold]In winter it falls on the hills, and the children
  build snowmen.

? What is the sea? | What is water? | What is rain? | What is a river? | Tell me about the sea.
= [water]Water falls from the clouds as rain and runs through the rivers to the sea. [water]The sea is wide and
  blue, and fish swim in it.

? What is night? | What are stars? | What is the moon? | Tell me about the night.
= [night]At night the sun is gone, and the moon and the stars shine. [night]Most animals sleep, but the owl is
  awake.

? What is a question? | what is a story | What is a word?
= A question is what you ask when you want to know something. A story is a little journey made of words.

? What is a probe? | What is actscope? | What is an activation? | Where am I? | What is this?
? What do the colors mean?
= You are looking into a small language model with actscope. A probe gives every word a score, and the color shows
  it.

? Tell me a joke. | a joke please | Do you know a joke? | Make me laugh. | tell me something funny
= Why [question]does the bee hum? Because she does not know the words!
= What [question]is gray and goes round and round? An elephant on a bicycle!
= Why [question]did the robot sleep so well? He was very tired after counting electric sheep!
= What [question]do you call a bear without teeth? A gummy bear!

? Why is the sky blue? | Why do birds fly? | Why is grass green? | Why is the sun hot? | Why do we sleep?
? Why does it rain? | Where do babies come from? | Why is water wet?
= I do not know that for sure. I am only a small model, but it is a good question.

? What time is it? | What day is it today? | What is the date? | How is the weather today? | Is it raining?
? what is the weather like | How old are you? | Where do you live?
= I cannot see that from in here. I have no clock and no window, only words.

? Do you dream? | Can you think? | Are you alive? | Do you have feelings? | Can you see me? | Can you hear me?
? are you real | do you sleep
= I only read words and write words. But I like to tell of dreams, of the moon and of the stars.

? Sing a song. | Write a poem. | sing | Sing for me. | A poem, please.
= The sun goes up, the moon goes down, a little bird sings over town. The river [water]runs, the flowers grow, and
  soft and white there falls the snow.

? ok | okay | Yes. | yes please | sure | why not | y | Yes, tell me! | alright | mhm
= STORY

? No. | no thanks | n | No, thank you. | stop | never mind | maybe | I don't know. | not now | hmm | what
? huh? | really? | Why? | test | testing | ... | lol | oh
= That is fine. I am here when you want to talk.
= All right. Just ask me when you like.

? Do you like snow? | Do you like cats? | What do you like? | What is your favorite animal?
? Do you like music? | Do you like stories? | What is your favorite food? | what is your favourite color
= I like the [cold]snow, because it makes everything quiet.
= I like all animals, but most of all the little [animal]fox.
= I like stories best, and warm [food]soup in the stories.

? You can do it! | Nice to meet you. | Pleased to meet you. | It is good to see you. | Welcome!
= Thank you! It is [joy]nice to meet you too.
"""


def _row(block: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lines = block.replace("\n  ", " ").split("\n")
    asks = [ask for line in lines if line[0] == "?" for ask in line[2:].split(" | ")]
    return tuple(asks), tuple(line[2:] for line in lines if line[0] == "=")


# For each row, the wordings of the question and the answers.
SMALL_TALK = tuple(_row(block) for block in _ROWS.strip().split("\n\n"))
