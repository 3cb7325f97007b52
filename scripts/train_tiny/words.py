"""The words that the data's voices say, nine languages of them."""

from __future__ import annotations

_ENGLISH = """
hello good morning evening friend today tomorrow yesterday maybe always never people music river mountain window garden
kitchen coffee apple orange summer winter rain sunshine train bicycle teacher doctor children family story letter
beautiful wonderful strange quiet little big old new walk talk listen remember forget open close begin finish bring
please thank you we they should could would because before after between about under over from with without seven eight
nine twelve hundred market village planet ocean rocket machine picture camera movie question answer idea problem
"""
_GERMAN = """
hallo guten morgen abend freund heute gestern vielleicht immer niemals leute musik fluss berg fenster garten
küche kaffee apfel sommer winter regen sonne zug fahrrad lehrer kinder familie geschichte brief schön wunderbar
leise klein groß alt neu gehen sprechen hören erinnern vergessen öffnen beginnen bringen bitte danke wir sollten weil
zwischen unter über ohne sieben acht zwölf hundert markt dorf maschine bild frage antwort gedanke
"""
_FRENCH = """
bonjour bonsoir ami aujourd'hui demain hier peut-être toujours jamais musique rivière montagne fenêtre jardin
cuisine café pomme été hiver pluie soleil train vélo professeur enfants famille histoire lettre beau merveilleux
petit grand vieux nouveau marcher parler écouter oublier ouvrir commencer apporter merci nous devons parce avant après
entre sous sans sept huit douze cent marché village machine image question réponse idée problème
"""
_SPANISH = """
hola buenos días tardes amigo hoy mañana ayer quizás siempre nunca gente música río montaña ventana jardín
cocina café manzana naranja verano invierno lluvia sol tren bicicleta maestro niños familia historia carta hermoso
maravilloso tranquilo pequeño grande viejo nuevo caminar hablar escuchar recordar olvidar abrir empezar traer gracias
nosotros porque antes después entre sobre sin siete ocho doce cien mercado pueblo máquina pregunta respuesta
"""
_ITALIAN = """
ciao buongiorno buonasera amico oggi domani ieri forse sempre mai gente musica fiume montagna finestra giardino
cucina caffè mela arancia estate inverno pioggia sole treno bicicletta maestro bambini famiglia storia lettera bello
meraviglioso tranquillo piccolo grande vecchio nuovo camminare parlare ascoltare ricordare aprire cominciare grazie
perché prima dopo fra sopra senza sette otto dodici cento mercato villaggio macchina domanda risposta
"""
_POLISH = """
cześć dzień dobry wieczór przyjaciel dzisiaj jutro wczoraj może zawsze nigdy ludzie muzyka rzeka góra okno ogród
kuchnia kawa jabłko lato zima deszcz słońce pociąg rower nauczyciel dzieci rodzina historia list piękny wspaniały
cichy mały duży stary nowy chodzić mówić słuchać pamiętać otworzyć zacząć proszę dziękuję ponieważ przed między pod nad
bez siedem osiem dwanaście sto rynek wioska maszyna obraz pytanie odpowiedź
"""
_PORTUGUESE = """
olá bom dia tarde noite amigo hoje amanhã ontem talvez sempre nunca gente música rio montanha janela jardim
cozinha café maçã laranja verão inverno chuva sol trem bicicleta professor crianças família história carta bonito
maravilhoso tranquilo pequeno grande velho novo caminhar falar ouvir lembrar esquecer abrir começar trazer obrigado
porque antes depois entre sobre sem sete oito doze cem mercado aldeia máquina pergunta resposta
"""
_DUTCH = """
hallo goede morgen avond vriend vandaag morgen gisteren misschien altijd nooit mensen muziek rivier berg raam tuin
keuken koffie appel zomer winter regen zon trein fiets leraar kinderen familie verhaal brief mooi prachtig stil
klein groot oud nieuw lopen praten luisteren vergeten openen beginnen brengen alsjeblieft dank wij omdat tussen onder
boven zonder zeven acht twaalf honderd markt dorp machine beeld vraag antwoord gedachte
"""
_SWEDISH = """
hej god morgon kväll vän idag imorgon igår kanske alltid aldrig folk musik flod berg fönster trädgård kök kaffe
äpple sommar vinter regn solsken tåg cykel lärare barn familj historia brev vacker underbar tyst liten stor gammal ny
gå tala lyssna minnas glömma öppna börja hämta snälla tack vi eftersom mellan under över utan sju åtta tolv hundra
marknad by maskin bild fråga svar tanke
"""

#: eSpeak NG's language -> the words of it.
WORDS: dict[str, tuple[str, ...]] = {
    "en-us": tuple(_ENGLISH.split()),
    "en-gb": tuple(_ENGLISH.split()),
    "de": tuple(_GERMAN.split()),
    "fr": tuple(_FRENCH.split()),
    "es": tuple(_SPANISH.split()),
    "it": tuple(_ITALIAN.split()),
    "pl": tuple(_POLISH.split()),
    "pt": tuple(_PORTUGUESE.split()),
    "nl": tuple(_DUTCH.split()),
    "sv": tuple(_SWEDISH.split()),
}
