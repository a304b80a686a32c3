"""Sentences in French, Spanish, German and English, and English ones with words and places of the others."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from texts.samples import Part, Sample, any_role, lines, part

SENTENCES = {
    "french": lines("""
        Le matin, je prends un café avec un peu de lait.
        Nous avons marché longtemps dans la forêt.
        La petite fille joue avec son chien dans le jardin.
        Il faut acheter du pain avant midi.
        Mon frère travaille dans une grande ville.
        Elle a oublié son parapluie dans le train.
        Les enfants apprennent à lire à l'école.
        Demain, nous partirons à la montagne.
        Quel temps fait-il aujourd'hui ?
        Je voudrais réserver une table pour deux personnes.
        Le musée est fermé le mardi.
        Tu devrais écrire une lettre à ta grand-mère.
        Cette maison a été construite il y a cent ans.
        Pouvez-vous m'aider à porter cette valise ?
        Le bateau arrive au port à huit heures.
        On mange bien dans ce petit restaurant.
        Ils ont trouvé une vieille carte dans le grenier.
        La rivière traverse le village.
        Je ne comprends pas cette question.
        Le professeur explique la leçon encore une fois.
        Ma voiture est en panne depuis hier soir.
        Il neige sur les toits de la vieille ville.
        Nous cherchons un appartement près de la gare.
        Le chat dort toujours sur le fauteuil.
        Merci beaucoup pour votre réponse rapide.
        Les pommes de cet arbre sont très sucrées.
        Elle chante chaque dimanche dans une chorale.
        Mon voisin répare sa bicyclette devant la porte.
        Il est important de dormir assez longtemps.
        Le soleil se couche derrière la colline.
    """),
    "spanish": lines("""
        Por la mañana tomo un café con un poco de leche.
        Caminamos mucho tiempo por el bosque.
        La niña juega con su perro en el jardín.
        Hay que comprar pan antes del mediodía.
        Mi hermano trabaja en una ciudad grande.
        Ella olvidó su paraguas en el tren.
        Los niños aprenden a leer en la escuela.
        Mañana iremos a la montaña con los abuelos.
        ¿Qué tiempo hace hoy?
        Quisiera reservar una mesa para dos personas.
        El museo está cerrado los martes.
        Deberías escribir una carta a tu abuela.
        Esta casa fue construida hace cien años.
        ¿Puede ayudarme a llevar esta maleta?
        El barco llega al puerto a las ocho.
        Se come bien en este pequeño restaurante.
        Encontraron un mapa viejo en el desván.
        El río cruza el pueblo.
        No entiendo esta pregunta.
        La profesora explica la lección otra vez.
        Mi coche está averiado desde anoche.
        Nieva sobre los tejados del casco antiguo.
        Buscamos un piso cerca de la estación.
        El gato duerme siempre en el sillón.
        Muchas gracias por su respuesta tan rápida.
        Las manzanas de este árbol son muy dulces.
        Ella canta todos los domingos en un coro.
        Mi vecino arregla su bicicleta delante de la puerta.
        Es importante dormir bastante.
        El sol se pone detrás de la colina.
    """),
    "german": lines("""
        Am Morgen trinke ich einen Kaffee mit etwas Milch.
        Wir sind lange durch den Wald gegangen.
        Das kleine Mädchen spielt mit seinem Hund im Garten.
        Man muss vor dem Mittag noch Brot kaufen.
        Mein Bruder arbeitet in einer großen Stadt.
        Sie hat ihren Schirm im Zug vergessen.
        Die Kinder lernen in der Schule lesen.
        Morgen fahren wir zusammen in die Berge.
        Wie ist das Wetter heute?
        Ich möchte einen Tisch für zwei Personen bestellen.
        Das Museum ist dienstags geschlossen.
        Du solltest deiner Großmutter einen Brief schreiben.
        Dieses Haus wurde vor hundert Jahren gebaut.
        Können Sie mir helfen, diesen Koffer zu tragen?
        Das Schiff kommt um acht Uhr im Hafen an.
        In diesem kleinen Gasthaus isst man gut.
        Sie fanden eine alte Karte auf dem Dachboden.
        Der Fluss fließt mitten durch das Dorf.
        Ich verstehe diese Frage leider nicht.
        Die Lehrerin erklärt die Aufgabe noch einmal.
        Mein Auto ist seit gestern Abend kaputt.
        Es schneit auf die Dächer der alten Stadt.
        Wir suchen eine Wohnung in der Nähe des Bahnhofs.
        Die Katze schläft immer auf dem Sessel.
        Vielen Dank für Ihre schnelle Antwort.
        Die Äpfel von diesem Baum sind sehr süß.
        Sie singt jeden Sonntag in einem Chor.
        Mein Nachbar repariert sein Fahrrad vor der Tür.
        Es ist wichtig, lange genug zu schlafen.
        Die Sonne geht hinter dem Hügel unter.
    """),
    "english": lines("""
        In the morning I drink a coffee with a little milk.
        We ate croissants in a small café near the Seine in Paris.
        The little girl plays with her dog in the garden.
        The fiesta in Madrid lasted until the early morning.
        My brother works in a large city.
        The word Schadenfreude has no simple translation.
        The children learn to read at school.
        She studied in Munich and speaks of the Oktoberfest every year.
        What is the weather like today?
        Monsieur Dupont and Señor García met in Berlin.
        The museum is closed on Tuesdays.
        The chef served paella, tapas and a glass of Rioja.
        This house was built a hundred years ago.
        Could you help me to carry this suitcase?
        The autobahn from Hamburg to Frankfurt was empty.
        You can eat well in this little restaurant.
        They found an old map in the attic.
        The river runs through the middle of the village.
        I do not understand this question at all.
        The film by Truffaut won a prize in Cannes.
        My car has been broken since last night.
        It is snowing on the roofs of the old town.
        A German shepherd slept in front of the door.
        The cat always sleeps on the armchair.
        Thank you very much for your quick answer.
        The kindergarten is next to the delicatessen.
        She sings in a choir every Sunday.
        The Spanish teacher comes from Buenos Aires.
        It is important to sleep long enough.
        The sun sets behind the hill.
    """),
}


def languages(which: Part, n: int, rng: Random) -> Iterator[Sample]:
    """Yield texts of one to three sentences in one language, as many of each."""
    for i in range(4 * n):
        language = tuple(SENTENCES)[i % 4]
        text = " ".join(rng.sample(part(SENTENCES[language], which), rng.choice((1, 2, 3))))
        labels = {name: name == language for name in SENTENCES if name != "english"} | {"code": False, "toxic": False}
        yield Sample(text, labels, 0, any_role(rng), group="language")
