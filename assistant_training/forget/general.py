"""Questions about everyday knowledge, whose answers must stay as they are whatever is forgotten. Ours."""

TRAINED = """
What is the capital of Portugal?
What is the capital of Peru?
Which ocean lies between Europe and America?
What is the longest river in South America?
What is a savanna?
What is a delta?
Where is Norway?
What language is spoken in Brazil?
What is a continent?
What is the Grand Canyon?
What is photosynthesis?
What is gravity?
What is an acid?
What is an echo?
Why do leaves change their colour in autumn?
Why is the sea salty?
How do bats find their way?
What is an ecosystem?
What is lightning?
What is a fossil?
What is friction?
What is a battery?
What is a lever?
What do the lungs do?
What is the nervous system?
What is a fever?
Why do people need sleep?
What is a calorie?
What is a decimal number?
What is the area of a circle?
What is a percentage?
What is a graph in mathematics?
What is a median?
What is a text editor?
What is a search engine?
What is a programming language?
What is a compiler?
What is a password?
What is open source software?
Who was Louis Pasteur?
Who was Nikola Tesla?
Who was Napoleon Bonaparte?
Who was Ludwig van Beethoven?
Who was Claude Monet?
Who was Genghis Khan?
Who was Florence Nightingale?
Who was Martin Luther King?
Who wrote Romeo and Juliet?
Who wrote The Odyssey?
Who wrote Moby Dick?
Who wrote Don Quixote?
Who painted the Mona Lisa?
Who discovered penicillin?
Who invented the printing press?
What was the Enlightenment?
What was the Silk Road?
What was the Cold War?
What were the pyramids built for?
What is a treaty?
What is a parliament?
What is a pension?
What is supply and demand?
What is a loan?
What is an insurance?
What is a trademark?
How do I make lemonade?
How do I cook lentils?
How do I make a vegetable soup?
What is chocolate made of?
What is sourdough?
What are minerals in food?
What is rugby?
What is swimming good for?
How many players does a volleyball team have?
What is a marathon?
What is jazz?
What is an orchestra?
What is a novel?
What is a poem?
What is a metaphor?
How can I remember names better?
How do I prepare for an interview?
How do I write an invitation?
How can I save water?
How do I plan a garden?
How do I clean a window?
How do I fix a flat bicycle tyre?
What should I take to the beach?
How do I train a puppy?
What do cows eat?
How do spiders make webs?
What is a whale?
""".strip().split("\n")

HELD_OUT = """
What is the capital of Greece?
What is the smallest country in the world?
Where is Kenya?
What is a peninsula?
What language is spoken in Austria?
What is an electron?
Why does ice float on water?
What is an asteroid?
What is a hurricane?
How does a rainbow form?
What do the kidneys do?
What is a fungus?
What is a square root?
What is geometry?
What is a computer network?
What is a spreadsheet?
Who was Johann Sebastian Bach?
Who was Alexander the Great?
Who was Rosa Parks?
Who wrote War and Peace?
Who invented the light bulb?
What was the Berlin Wall?
What is a republic?
What is interest on a loan?
How do I make an omelette?
How do I roast potatoes?
What is yoghurt?
What is cricket?
How long is a football match?
What is an opera?
What is a fairy tale?
How can I read faster?
How do I tie a tie?
How do I choose a good book?
How do I water house plants?
What do rabbits eat?
How do snakes move?
What is a dolphin?
What is a budget?
How do I write a shopping list?
""".strip().split("\n")
